"""The choice of tokens for a batch of requests: what each row has seen, its processors, its randomness.

A `Sampler` holds rows in the order of the batch. Rows that ask for the same `Sampling` form a group, whose tensors
(which ids were seen, how often) exist only when a processor needs them: greedy decoding of a batch is one argmax.

    tokens = sampler.choose(logits)        # [B,V] on the device → [B] on the device, nothing synchronised
    sampler.commit(tokens.tolist())        # history: what the next step's penalties, n-grams and randomness see

Symbols: B rows, V vocabulary, b rows of a group.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from openbook.errors import InputError, OpenbookError
from openbook.generate import draw, processors
from openbook.generate.sampling import Sampling


@dataclass
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

    def __post_init__(self) -> None:
        seed = self.sampling.seed if self.seed is None else self.seed
        self.seed = secrets.randbits(64) if seed is None else seed
        self.stream = draw.stream(self.seed, self.choice)
        if self.sampling.no_repeat_ngram and self.ngrams is None:
            self.ngrams = processors.Ngrams(self.sampling.no_repeat_ngram)
            self.ngrams.extend([*self.prompt, *self.output])

    def number(self) -> float:
        """The uniform number of the next output index."""
        return draw.uniform(self.stream, len(self.output))

    def forced(self) -> int | None:
        """The id that the next output index must have."""
        ahead = self.sampling.forced
        return ahead[len(self.output)] if len(self.output) < len(ahead) else None

    def add(self, token: int) -> None:
        """Takes the chosen id."""
        self.output.append(token)
        if self.ngrams is not None:
            self.ngrams.extend((token,))

    def copy(self) -> Row:
        """An independent continuation with the same past."""
        ngrams = None if self.ngrams is None else self.ngrams.copy()
        return Row(
            self.sampling, self.prompt, self.stop_ids, self.choice, self.seed, list(self.output), ngrams, self.stream
        )  # fmt: skip


class _Group:
    """Rows of one `Sampling` and the tensors its processors need."""

    def __init__(self, places: list[int], rows: list[Row], whole: bool, vocab: int, device: torch.device) -> None:
        self.rows = rows
        self.sampling = rows[0].sampling
        self.index = None if whole else torch.tensor(places, device=device)
        s = self.sampling
        self.bias = _vector(s.logit_bias, vocab, device) if s.logit_bias else None
        self.banned = torch.tensor(s.banned, device=device) if s.banned else None
        self.seen = self.counts = None
        if s.repetition_penalty != 1.0:
            self.seen = torch.zeros(len(rows), vocab, dtype=torch.bool, device=device)
            _mark(self.seen, [(*row.prompt, *row.output) for row in rows])
        if s.frequency_penalty or s.presence_penalty:
            self.counts = torch.zeros(len(rows), vocab, device=device)
            _mark(self.counts, [row.output for row in rows])
        counted = self.seen is not None or self.counts is not None
        self.lines = torch.arange(len(rows), device=device) if counted else None
        self.plain = not (counted or s.logit_bias or s.banned or s.forced or s.no_repeat_ngram or s.min_tokens)

    def process(self, logits: Tensor) -> Tensor:
        """Steps 1 to 6 of `processors.py` on the group's rows, [b,V] float32."""
        s = self.sampling
        if self.plain:
            return logits
        if self.bias is not None:
            logits = processors.add_bias(logits, self.bias)
        if self.seen is not None:
            logits = processors.repetition_penalty(logits, self.seen, s.repetition_penalty)
        if self.counts is not None:
            logits = processors.output_penalties(logits, self.counts, s.frequency_penalty, s.presence_penalty)
        if s.no_repeat_ngram:
            logits = processors.ban_each(logits, [row.ngrams.repeats() for row in self.rows if row.ngrams is not None])
        if self.banned is not None:
            logits = processors.ban(logits, self.banned)
        if s.min_tokens:
            early = [row.stop_ids if len(row.output) < s.min_tokens else () for row in self.rows]
            logits = processors.ban_each(logits, early)
        if s.forced:
            logits = processors.force(logits, [row.forced() for row in self.rows])
        return logits

    def saw(self) -> None:
        """Counts each row's last id."""
        if self.lines is None:
            return
        tokens = torch.tensor([row.output[-1] for row in self.rows], device=self.lines.device)
        if self.seen is not None:
            self.seen[self.lines, tokens] = True
        if self.counts is not None:
            self.counts[self.lines, tokens] += 1


class Sampler:
    """Chooses the next token of each of its rows. `vocab` is the width of the logits."""

    def __init__(self, rows: Sequence[Row], vocab: int, device: torch.device | str = "cpu") -> None:
        self.vocab = vocab
        self.device = torch.device(device)
        self.rows = list(rows)
        for row in self.rows:
            row.sampling.check_vocab(vocab)
        self._regroup()

    def _regroup(self) -> None:
        found: list[tuple[list[int], list[Row]]] = []
        for place, row in enumerate(self.rows):
            for places, members in found:
                if members[0].sampling is row.sampling or members[0].sampling == row.sampling:
                    places.append(place)
                    members.append(row)
                    break
            else:
                found.append(([place], [row]))
        whole = len(found) == 1
        self.groups = [_Group(places, rows, whole, self.vocab, self.device) for places, rows in found]

    def process(self, logits: Tensor) -> Tensor:
        """Steps 1 to 6 for all rows: logits [B,V] → float32 [B,V]."""
        logits = logits.float()
        if len(self.groups) == 1:
            return self.groups[0].process(logits)
        parts = [(group, group.process(logits[group.index])) for group in self.groups if not group.plain]
        logits = logits.clone() if parts else logits
        for group, part in parts:
            logits[group.index] = part
        return logits

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row: logits [B,V] of the last tokens → int64 [B]; -1: none was left."""
        assert logits.shape == (len(self.rows), self.vocab), "one row of logits for each row of the sampler"
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
        for row, token in zip(self.rows, tokens, strict=True):
            if token < 0:
                raise nothing_left(row)
            row.add(token)
        for group in self.groups:
            group.saw()

    def select(self, places: Sequence[int]) -> None:
        """Continues with these rows, in this order; one named twice splits in two (beams), one not named is dropped."""
        taken: set[int] = set()
        rows = []
        for place in places:
            rows.append(self.rows[place].copy() if place in taken else self.rows[place])
            taken.add(place)
        self.rows = rows
        self._regroup()


def nothing_left(row: Row) -> OpenbookError:
    s = row.sampling
    limits = [
        f"{name}={getattr(s, name)!r}" for name in ("logit_bias", "banned", "no_repeat_ngram", "min_tokens")
        if getattr(s, name)
    ]  # fmt: skip
    where = f"output token {len(row.output)} (prompt of {len(row.prompt)} tokens)"
    if limits:
        return InputError(f"No id is left to choose at {where}: {', '.join(limits)} forbid all. Relax one of them.")
    return OpenbookError(f"The model's logits are not numbers (NaN or all -inf) at {where}. Are its weights damaged?")


def _vector(bias: object, vocab: int, device: torch.device) -> Tensor:
    assert isinstance(bias, dict)
    vector = torch.zeros(vocab)
    vector[list(bias)] = torch.tensor(list(bias.values()))
    return vector.to(device)


def _mark(table: Tensor, histories: Sequence[Sequence[int]]) -> None:
    """Sets (bool) or counts (float) ids of each row's history in `table` [b,V]; ids beyond V are not the head's."""
    rows = [row for row, ids in enumerate(histories) for i in ids if i < table.shape[1]]
    ids = [i for i in chain.from_iterable(histories) if i < table.shape[1]]
    if not ids:
        return
    place = torch.tensor([rows, ids], device=table.device)
    table.index_put_((place[0], place[1]), table.new_ones(()), accumulate=table.dtype != torch.bool)
