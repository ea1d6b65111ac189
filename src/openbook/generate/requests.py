"""Requests and their results: what is asked of a model, checked at the edge, and what comes back.

Plain values; ids and bytes only. Symbols: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Literal, SupportsIndex

from openbook.errors import InputError, Refusal, TooLong
from openbook.generate.sampling import Sampling
from openbook.nn import spec
from openbook.nn.model import LanguageModel

Finish = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True)
class Logprob:
    """The log-probability of one token under the model's own distribution (before any processor), and the best ones."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), best first

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {"id": self.id, "logprob": self.logprob, "top": [list(pair) for pair in self.top]}


@dataclass(frozen=True)
class Token:
    """One token of the output, as it is streamed."""

    prompt: int  # which prompt, by its place in the call
    choice: int
    index: int  # its place in the output
    id: int
    text: bytes = b""  # output bytes that became certain with it (needs `token_bytes`)
    logprob: Logprob | None = None
    finish: Finish | None = None  # set on the last token of a choice
    version: int = 0  # of the weights it was made with: how often weights were pushed before
    cached: int = 0  # prompt tokens whose state was there already (prefix cache), where that is known


@dataclass
class Generation:
    """One finished output.

    `ids` holds all output ids, the id that stopped it included. `finish`: "stop" (a stop id, end id or stop string:
    `stopped_by` says which), "length" (`max_tokens`, or the context is full), "cancelled", "deadline" (its time was
    over) or "error" (`error` says which). With a stop string the last `excess` bytes of the ids' bytes are not text:
    the stop and what its last token held beyond it.
    """

    prompt: int
    choice: int
    ids: list[int] = field(default_factory=list)
    finish: Finish = "length"
    stopped_by: int | bytes | None = None
    excess: int = 0
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob | None] | None = None  # None for the first token, which nothing precedes
    cached: int = 0  # prompt tokens whose state was there already (prefix cache)
    versions: list[int] | None = None  # of the weights that made each token, where weights were pushed meanwhile
    error: str | None = None  # why, where `finish` is "error"
    refused: bool = False  # the error is the request's own: what it asks for cannot be
    score: float | None = None  # beam search: sum of log-probabilities / length ** length_penalty


@dataclass(frozen=True)
class Request:
    """One prompt and how to go on from it; `source` is what the encoder of an encoder-decoder reads."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    room: int  # output tokens that fit, at most `max_tokens`
    stop_ids: frozenset[int]
    rotary: int  # what length-dependent rotary scaling is fixed to; equal for all requests where there is none
    source: tuple[int, ...] | None = None


def accept(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    eos: Sequence[int] = (),
    start: Sequence[int] = (),
    context: int | None = None,
    first: int = 0,
) -> list[Request]:
    """Checks prompts against the model and numbers the requests from `first` on; errors name a prompt by its place.

    `Refusal` for a model that cannot write, `InputError` for a bad prompt.
    """
    if model.spec.language is None:
        raise Refusal("This model has no language head: it cannot write. Its heads: " + ", ".join(model.heads) + ".")
    if not model.spec.causal:
        raise Refusal("This model sees both ways and cannot write from left to right: use fill-in (`fill`, `unmask`).")
    if len(samplings) != len(prompts):
        raise InputError(f"There are {len(prompts)} prompts and {len(samplings)} samplings: give one, or one for each.")
    two_sided = model.spec.source is not None
    if two_sided and not start:
        raise InputError("An encoder-decoder begins its output with a start id: give `start` (decoder_start_token_id).")
    if not two_sided and start:
        raise InputError("`start` is for encoder-decoders: this model goes on from its prompt.")
    vocab = model.spec.embed.vocab
    limit = model.spec.context if context is None else context
    begin = tuple(check_ids("`start`", start, vocab))
    ends = frozenset(check_ids("`eos`", eos, vocab))
    requests = []
    for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        ids = tuple(check_ids(f"prompt {number}", prompt, model.spec.reads.vocab))
        if not ids:
            raise InputError(f"Prompt {number} is empty: give at least one id (the begin id, say).")
        if two_sided and sampling.prompt_logprobs is not None:
            raise InputError("`prompt_logprobs` is for models that go on from their prompt, not for encoder-decoders.")
        sampling.check_vocab(vocab)
        if two_sided:
            _fits(number, len(ids), model.spec.reads.room)
        before = begin if two_sided else ids
        room = _room(number, len(before), sampling, limit)
        requests.append(
            Request(
                number=first + number,
                prompt=before,
                sampling=sampling,
                room=room,
                stop_ids=frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else ends),
                rotary=rotary_of(model, len(before) + room),
                source=ids if two_sided else None,
            )
        )
    return requests


def check_ids(name: str, ids: Iterable[SupportsIndex], vocab: int) -> list[int]:
    """The ids as plain numbers. Raises `InputError` for what is no id of a vocabulary of `vocab` ids."""
    given = list(ids)
    plain = [one for one in given if type(one) is int]
    if plain and len(plain) == len(given) and min(plain) >= 0 and max(plain) < vocab:
        return plain  # as nearly always, and twenty times quicker than to look at one after another
    checked: list[int] = []
    for i in given:
        if isinstance(i, bool) or not isinstance(i, SupportsIndex) or not 0 <= _index(i) < vocab:
            raise InputError(f"{name} holds {i!r} at place {len(checked)}: ids of this model are 0 to {vocab - 1}.")
        checked.append(_index(i))
    return checked


def _index(value: SupportsIndex) -> int:
    """A whole number (numpy's and torch's too) as an int; -1 for what only looks like one."""
    try:
        return index(value)
    except TypeError:
        return -1


def _fits(number: int, length: int, limit: int | None) -> None:
    if limit is not None and length > limit:
        raise TooLong(
            f"Prompt {number} has {length} tokens and the encoder of this model reads {limit}: shorten it by "
            f"{length - limit}."
        )


def _room(number: int, length: int, sampling: Sampling, limit: int | None) -> int:
    """Output tokens that fit beside a prompt of `length`; prompt and output together fill the context at most."""
    if limit is None:
        return sampling.max_tokens
    if length > limit:
        raise TooLong(
            f"Prompt {number} has {length} tokens and the context of this model holds {limit}: shorten it by "
            f"{length - limit} (more, to leave room for the output)."
        )
    if length == limit and sampling.max_tokens:
        raise TooLong(f"Prompt {number} fills the context of {limit} tokens: there is no room for output.")
    return min(sampling.max_tokens, limit - length)


def rotary_of(model: LanguageModel, total: int) -> int:
    """Length-dependent scaling is fixed when a request is admitted: to all it may come to, or the original context."""
    scalings = [table.rope.scaling for table in model.stack.tables]
    originals = [scaling.original for scaling in scalings if isinstance(scaling, spec.LengthDependent)]
    return max(total, *originals) if originals else 0


def replay(generations: Sequence[Generation]) -> Iterator[Token]:
    """The tokens of finished outputs, as if they came now."""
    for generation in generations:
        for place, token in enumerate(generation.ids):
            last = place == len(generation.ids) - 1
            yield Token(
                generation.prompt, generation.choice, place, token, finish=generation.finish if last else None
            )  # fmt: skip
