"""The choice of tokens for a batch of requests: what each row has seen, its processors, its randomness.

A `Sampler` holds rows in the order of the batch. Rows whose settings act alike form a group (`alike`), whose tensors
(`history.py`) exist only when a processor needs them: greedy decoding of a batch is one argmax.

    tokens = sampler.choose(logits)        # [B,V] on the device → [B] on the device, nothing synchronised
    sampler.commit(tokens.tolist())        # history: what the next step's penalties, n-grams and randomness see
    sampler.update(rows)                   # other rows

Symbols: B rows, V vocabulary, b rows of a group.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from openbook.errors import InputError, OpenbookError
from openbook.generate import draw, processors
from openbook.generate.constraints import Constraint, masks
from openbook.generate.history import Counted, Seen
from openbook.generate.sampling import Sampling

# What a group of rows has in common: the fields of its processors, and which steps any of its rows may need.
Key = tuple[object, ...]


@dataclass(eq=False)
class Row:
    """One row of the batch: a request, which of its choices this is, and what has been written so far."""

    sampling: Sampling
    prompt: Sequence[int]
    stop_ids: frozenset[int] = frozenset()
    choice: int = 0
    seed: int | None = None  # None: the sampling's, or a fresh one
    output: list[int] = field(default_factory=list)
    ngrams: processors.Ngrams | None = None
    stream: int = 0
    constraint: Constraint | None = None  # where the output stands in the sampling's grammar
    key: Key = ()
    seen: Seen | None = None  # made when a penalty first asks for it

    def __post_init__(self) -> None:
        seed = self.sampling.seed if self.seed is None else self.seed
        self.seed = secrets.randbits(64) if seed is None else seed
        self.stream = draw.stream(self.seed, self.choice)
        self.key = self.key or alike(self.sampling)
        if self.sampling.no_repeat_ngram and self.ngrams is None:
            self.ngrams = processors.Ngrams(self.sampling.no_repeat_ngram)
            self.ngrams.extend([*self.prompt, *self.output])
        if self.sampling.grammar is not None and self.constraint is None:
            raise InputError("A `grammar` needs the bytes of the tokenizer's ids, which this call does not have.")

    def number(self) -> float:
        """The uniform number of the next output index."""
        return draw.uniform(self.stream, len(self.output))

    def forced(self) -> int | None:
        """The id that the next output index must have."""
        ahead = self.sampling.forced
        return ahead[len(self.output)] if len(self.output) < len(ahead) else None

    def early(self) -> frozenset[int]:
        """The ids that must not come yet, since they would stop the output."""
        return self.stop_ids if len(self.output) < self.sampling.min_tokens else frozenset()

    def add(self, token: int) -> None:
        """Takes the chosen id."""
        if self.constraint is not None:
            self.constraint.accept(token)
        self.output.append(token)
        if self.ngrams is not None:
            self.ngrams.extend((token,))
        if self.seen is not None:
            self.seen.add(token)

    def past(self, vocab: int) -> Seen:
        """What penalties look at. Ids of the prompt beyond `vocab` are not the head's."""
        if self.seen is None:
            prompt = self.prompt if self.sampling.repetition_penalty != 1.0 else ()
            self.seen = Seen([i for i in prompt if i < vocab], self.output)
        return self.seen

    def copy(self) -> Row:
        """An independent continuation with the same past."""
        return replace(
            self,
            output=list(self.output),
            ngrams=None if self.ngrams is None else self.ngrams.copy(),
            constraint=None if self.constraint is None else self.constraint.copy(),
            seen=None if self.seen is None else self.seen.copy(),
        )


def alike(s: Sampling) -> Key:
    """Rows with equal keys run as one group: what shapes the distribution, and nothing else (no seeds, no lengths).

    What is looked up row by row (forced ids, n-grams, min_tokens) counts only as being there or not, and what follows
    the argmax does not count for greedy rows.
    """
    drawn = () if s.greedy else (s.top_k, s.top_p, s.min_p, s.typical_p)
    return (
        s.temperature, drawn, s.repetition_penalty, s.presence_penalty, s.frequency_penalty, bool(s.no_repeat_ngram),
        tuple(sorted(s.logit_bias.items())), s.banned, bool(s.forced), bool(s.min_tokens),
    )  # fmt: skip


class _Group:
    """Rows that act alike, and the tensors their processors need."""

    def __init__(self, rows: list[Row], vocab: int, device: torch.device) -> None:
        self.rows = rows
        self.vocab, self.device = vocab, device
        self.index: Tensor | None = None  # places in the batch; None: all of it
        s = self.sampling = rows[0].sampling
        self.bias = _vector(s.logit_bias, vocab, device) if s.logit_bias else None
        self.banned = torch.tensor(s.banned, device=device) if s.banned else None
        self.penalised = bool(s.repetition_penalty != 1.0 or s.frequency_penalty or s.presence_penalty)
        self.history: Counted | None = None
        self.plain = not (self.penalised or s.logit_bias or s.banned or s.forced or s.no_repeat_ngram or s.min_tokens)

    def _penalise(self, logits: Tensor) -> Tensor:
        s = self.sampling
        if self.history is None or not self.history.current():
            pasts = [row.past(self.vocab) for row in self.rows]
            self.history = Counted(pasts, [row.output for row in self.rows], self.vocab, self.device)
        return self.history.penalise(logits, s.repetition_penalty, s.frequency_penalty, s.presence_penalty)

    def process(self, logits: Tensor) -> Tensor:
        """Steps 1 to 6 of `processors.py` on the group's rows, [b,V] float32."""
        s = self.sampling
        if self.plain:
            return logits
        if self.bias is not None:
            logits = processors.add_bias(logits, self.bias)
        if self.penalised:
            logits = self._penalise(logits)
        if s.no_repeat_ngram:
            logits = processors.ban_each(logits, [row.ngrams.repeats() for row in self.rows if row.ngrams is not None])
        if self.banned is not None:
            logits = processors.ban(logits, self.banned)
        if s.min_tokens:
            logits = processors.ban_each(logits, [row.early() for row in self.rows])
        if s.forced:
            logits = processors.force(logits, [row.forced() for row in self.rows])
        return logits


class Sampler:
    """Chooses the next token of each of its rows. `vocab` is the width of the logits."""

    def __init__(self, rows: Sequence[Row], vocab: int, device: torch.device | str = "cpu") -> None:
        self.vocab = vocab
        self.device = torch.device(device)
        self.rows: list[Row] = []
        self.groups: list[_Group] = []
        self.held: list[int] = []  # places of rows with a grammar
        self.update(rows)

    def update(self, rows: Sequence[Row]) -> None:
        """Goes on with these rows, in this order. Groups whose rows are the same keep their tensors."""
        rows = list(rows)
        if rows == self.rows:
            return
        known = set(self.rows)
        for row in rows:
            if row not in known:
                row.sampling.check_vocab(self.vocab)
        found: dict[Key, list[int]] = {}
        for place, row in enumerate(rows):
            found.setdefault(row.key, []).append(place)
        old = {group.rows[0].key: group for group in self.groups}
        groups = []
        for key, places in found.items():
            members = [rows[place] for place in places]
            group = old.get(key)
            if group is None or group.rows != members:
                group = _Group(members, self.vocab, self.device)
            group.index = None if len(found) == 1 else torch.tensor(places, device=self.device)
            groups.append(group)
        self.rows, self.groups = rows, groups
        self.held = [place for place, row in enumerate(rows) if row.constraint is not None]

    def process(self, logits: Tensor) -> Tensor:
        """Steps 0 to 6 for all rows: logits [B,V] → float32 [B,V]."""
        logits = self._hold(logits.float())
        if len(self.groups) == 1:
            return self.groups[0].process(logits)
        parts = [(group, group.process(logits[group.index])) for group in self.groups if not group.plain]
        logits = logits.clone() if parts else logits
        for group, part in parts:
            logits[group.index] = part
        return logits

    def _hold(self, logits: Tensor) -> Tensor:
        """Step 0: ids that a row's grammar does not allow become impossible."""
        if not self.held:
            return logits
        constraints = [row.constraint for row in self.rows if row.constraint is not None]
        allowed = torch.from_numpy(masks(constraints, self.vocab)).to(logits.device)  # [b,V]
        return hold(logits, self.held, allowed)

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row: logits [B,V] of the last tokens → int64 [B]; -1: none was left."""
        assert logits.shape == (len(self.rows), self.vocab), "one row of logits for each row of the sampler"
        logits = self._hold(logits)
        if len(self.groups) == 1:
            return self._choose(self.groups[0], logits)
        tokens = torch.empty(len(self.rows), dtype=torch.int64, device=logits.device)
        for group in self.groups:
            tokens[group.index] = self._choose(group, logits[group.index])
        return tokens

    def _choose(self, group: _Group, logits: Tensor) -> Tensor:
        if group.sampling.greedy:  # argmax needs no float32 of its own
            return draw.argmax(logits if group.plain else group.process(logits.float()))
        numbers = [row.number() for row in group.rows]
        return draw.choose(group.process(logits.float()), group.sampling, numbers)

    def commit(self, tokens: Sequence[int]) -> None:
        """Takes the chosen ids into the history. Raises where a row had none to choose from."""
        for error in self.take(tokens):
            if error is not None:
                raise error

    def take(self, tokens: Sequence[int]) -> list[OpenbookError | None]:
        """Like `commit`, without raising: the error of each row that could not go on, beside which the others did."""
        return [take(row, token) for row, token in zip(self.rows, tokens, strict=True)]

    def select(self, places: Sequence[int]) -> None:
        """Continues with these rows, in this order; one named twice splits in two (beams), one not named is dropped."""
        taken: set[int] = set()
        rows = []
        for place in places:
            rows.append(self.rows[place].copy() if place in taken else self.rows[place])
            taken.add(place)
        self.update(rows)


def hold(logits: Tensor, places: Sequence[int], allowed: Tensor) -> Tensor:
    """Logits [B,V] in which some rows have only the ids that are allowed, bool [b,V]."""
    if len(places) == len(logits):
        return torch.where(allowed, logits, processors.IMPOSSIBLE)
    index = torch.tensor(places, device=logits.device)
    return logits.index_copy(0, index, torch.where(allowed, logits[index], processors.IMPOSSIBLE))


def take(row: Row, token: int) -> OpenbookError | None:
    """Adds the chosen id (-1: there was none) to a row; the error if that cannot be."""
    if token < 0:
        return nothing_left(row)
    try:
        row.add(token)
    except OpenbookError as error:
        return error
    return None


def nothing_left(row: Row) -> OpenbookError:
    """The error for a row in which no id is possible: what forbids them, or that the model is broken."""
    s = row.sampling
    names = ("logit_bias", "banned", "no_repeat_ngram", "min_tokens", "grammar")
    limits = [f"{name}={getattr(s, name)!r:.80}" for name in names if getattr(s, name)]
    where = f"output token {len(row.output)} (prompt of {len(row.prompt)} tokens)"
    if row.constraint is not None and row.constraint.fault is not None:
        return InputError(f"The grammar cannot be honoured at {where}: {row.constraint.fault}")
    if limits:
        return InputError(f"No id is left to choose at {where}: {', '.join(limits)} forbid all. Relax one of them.")
    return OpenbookError(f"The model's logits are not numbers (NaN or all -inf) at {where}. Are its weights damaged?")


def _vector(bias: object, vocab: int, device: torch.device) -> Tensor:
    assert isinstance(bias, dict)
    vector = torch.zeros(vocab)
    vector[list(bias)] = torch.tensor(list(bias.values()))
    return vector.to(device)
