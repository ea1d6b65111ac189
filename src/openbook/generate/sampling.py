"""What a request may ask of the choice of its tokens: one frozen value, validated at the edge.

A `Sampling` holds plain values only: it can be read from a recipe, a command line or an API request, compared, and kept
in a log. What its fields do to the logits, and in which order, is in `processors.py`; how a token is then drawn is in
`draw.py`.

Every field that is out of range raises `InputError` naming the field, the value and what is allowed. Nothing is
ignored: a combination that could not be honoured (temperature with beams, say) is an error too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from openbook.errors import InputError
from openbook.generate.grammars import Calls, Choice, Grammar, Json, Lark, Reasoned, Regex, Schema

BATCH_LIMIT = 1024  # choices or beams of one request: more is a mistake and would exhaust memory


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request's tokens are chosen. The defaults draw from the model's own distribution.

    Lengths and stops:
        max_tokens: most output tokens, >= 0 (0: only the prompt is read, for `prompt_logprobs`).
        min_tokens: no stop id, end id or stop string counts before this many output tokens.
        stop_ids: ids that end the output (they are its last id), beside the model's end ids.
        stop: strings that end the output, matched on bytes across token borders; the text ends before them.
        ignore_eos: the model's end ids do not stop (`stop_ids` still do).
    The distribution, in the order of `processors.py`:
        grammar: what the output must be: a Schema, Regex, Choice, Lark or Json of `grammars.py`; ids that cannot
            become such a text are impossible; an id that ends the output is possible exactly when the text is whole.
            (Calls and Reasoned, which `chat` makes of tools, are grammars too.)
        logit_bias: id -> number added to its logit; -inf forbids it.
        repetition_penalty: > 0; 1 is off. Over prompt and output (Keskar et al. 2019, arXiv 1909.05858).
        frequency_penalty, presence_penalty: subtracted per occurrence / once, over output tokens only.
        no_repeat_ngram: no n-gram of this length occurs twice in prompt and output; 0 is off.
        banned: ids never chosen.    forced: output token i is `forced[i]` while there are any.
        temperature: 0 is greedy (exact argmax, the lowest id among equals).
        top_k: 0 is off.   top_p: 1 is off.   min_p: 0 is off.   typical_p: 1 is off.
    The result:
        seed: the randomness of a request is a function of (seed, which of its n choices, output index) and of nothing
            else, so neither batch mates nor order change it. None draws a fresh seed for every request.
        logprobs: None, or how many alternatives to report beside each output token's own log-probability.
        prompt_logprobs: the same for prompt tokens. Both are of the model's raw distribution, before any processor.
        n: choices per prompt; with beams, how many of the best beams to return.
        beams: > 1 is beam search; `length_penalty` and `early_stopping` as in `beam.py`.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    banned: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    grammar: Grammar | None = None
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str | bytes, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("banned", "forced", "stop_ids"):
            object.__setattr__(self, name, _ids(name, getattr(self, name)))
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        self._check_together()

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("max_tokens", 0, None), ("min_tokens", 0, None), ("top_k", 0, None), ("no_repeat_ngram", 0, None),
            ("n", 1, BATCH_LIMIT), ("beams", 1, BATCH_LIMIT),
        ):  # fmt: skip
            _integer(name, getattr(self, name), low, high)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, None)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        for name, low_, high_ in (
            ("temperature", 0.0, None), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0), ("presence_penalty", None, None),
            ("frequency_penalty", None, None), ("length_penalty", None, None),
        ):  # fmt: skip
            _number(name, getattr(self, name), low_, high_)
        for name, limit in (("typical_p", 1.0), ("repetition_penalty", None)):
            _number(name, getattr(self, name), 0.0, limit, open_low=True)
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"`ignore_eos` must be true or false: got {self.ignore_eos!r}.")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InputError(f"`early_stopping` must be true, false or 'never': got {self.early_stopping!r}.")
        known = (Schema, Regex, Choice, Lark, Json, Calls, Reasoned)
        if self.grammar is not None and not isinstance(self.grammar, known):
            raise InputError(f"`grammar` must be a Schema, Regex, Choice, Lark or Json: got {self.grammar!r:.80}.")

    def _check_together(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise InputError(f"`min_tokens` must be at most `max_tokens`: got {self.min_tokens} > {self.max_tokens}.")
        both = sorted(set(self.banned) & set(self.forced))
        if both:
            raise InputError(f"`banned` and `forced` must not share ids: both hold {both}.")
        if self.forced and self.grammar is not None:
            raise InputError(
                "`forced` ids and a `grammar` cannot both decide what is written: leave out one of the two."
            )
        if self.beams == 1:
            return
        if self.n > self.beams:
            raise InputError(f"`n` must be at most `beams`: got n={self.n}, beams={self.beams}.")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                raise InputError(f"`{name}` is not reported by beam search (`beams` > 1): ask for one of the two.")
        drawn = {"temperature": (0.0, 1.0), "top_k": (0,), "top_p": (1.0,), "min_p": (0.0,), "typical_p": (1.0,)}
        for name, neutral in drawn.items():
            if getattr(self, name) not in neutral:
                raise InputError(
                    f"`{name}` has no meaning with `beams` > 1, which is deterministic: got "
                    f"{name}={getattr(self, name)}, beams={self.beams}. Leave out one of the two."
                )

    @property
    def greedy(self) -> bool:
        """True when the token is the argmax: temperature 0."""
        return self.temperature == 0.0

    @property
    def stop_bytes(self) -> tuple[bytes, ...]:
        """The stop strings as UTF-8 bytes."""
        return tuple(s.encode() if isinstance(s, str) else s for s in self.stop)

    def check_vocab(self, vocab: int) -> None:
        """Raises `InputError` for an id that a vocabulary of `vocab` ids does not have."""
        for name in ("logit_bias", "banned", "forced", "stop_ids"):
            wrong = [i for i in getattr(self, name) if i >= vocab]
            if wrong:
                raise InputError(f"`{name}` names id {wrong[0]}, but the model has {vocab} ids (0 to {vocab - 1}).")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and count > vocab:
                raise InputError(f"`{name}` must be at most the vocabulary ({vocab}): got {count}.")
        if len(set(self.banned)) >= vocab:
            raise InputError(f"`banned` forbids all {vocab} ids of the model: nothing could be chosen.")


def _integer(name: str, value: object, low: int, high: int | None) -> None:
    allowed = f"a whole number, at least {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InputError(f"`{name}` must be {allowed}: got {value!r}.")


def _number(name: str, value: object, low: float | None, high: float | None, open_low: bool = False) -> None:
    parts = [] if low is None else [f"more than {low:g}" if open_low else f"at least {low:g}"]
    parts += [] if high is None else [f"at most {high:g}"]
    allowed = " and ".join(parts) or "finite"
    if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
        above = low is None or value > low or (value == low and not open_low)
        if above and (high is None or value <= high):
            return
    raise InputError(f"`{name}` must be a number, {allowed}: got {value!r}.")


def _ids(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InputError(f"`{name}` must be a sequence of token ids: got {value!r}.")
    ids = tuple(value)
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise InputError(f"`{name}` must hold token ids (whole numbers, at least 0): got {item!r}.")
    return ids


def _stops(value: object) -> tuple[str | bytes, ...]:
    if isinstance(value, (str, bytes)):
        value = (value,)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise InputError(f"`stop` must be a string or a sequence of strings: got {value!r}.")
    stops = tuple(value)
    for item in stops:
        if not isinstance(item, (str, bytes)):
            raise InputError(f"`stop` must hold strings or bytes: got {item!r}.")
        if not item:
            raise InputError("`stop` holds an empty string, which would stop before the first token. Leave it out.")
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"`stop` holds {item!r}, which is not valid Unicode (a lone surrogate).") from error
    return stops


def _bias(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"`logit_bias` must map token ids to numbers: got {value!r}.")
    _ids("logit_bias", tuple(value))
    for token, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number < math.inf:
            raise InputError(f"`logit_bias` must map ids to finite numbers or -inf: got {number!r} for id {token}.")
    return {int(token): float(number) for token, number in value.items()}
