"""The held-out text as evaluation batches that know how many bytes they stand for.

Bits per byte = nats / (bytes · ln 2), with nats the summed cross-entropy over all targets of all batches. It is exact
because every id of the held-out text is predicted once: a run that does not begin with bos gets a context token
before it (bos, else eos), and a tokenizer that has neither loses the bytes of the ids that cannot be predicted. The
nats include those of eos: a model also pays for knowing where a text ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np

from openbook.data.batch import IGNORED, Batch, as_batch
from openbook.data.packing import Ints, Layout, Stream, best_fit
from openbook.data.shards import BEGINS, Shards
from openbook.errors import UsageError


class Batches(Protocol):
    """What `Together` holds."""

    bytes: int

    def __iter__(self) -> Iterator[Batch]: ...


T = TypeVar("T", bound=Batches)


class Together(Generic[T]):
    """Held-out batches of several sources, one source after the other, so that each is also measured by its name."""

    def __init__(self, parts: Mapping[str, T]) -> None:
        self.parts = dict(parts)
        self.bytes = sum(part.bytes for part in self.parts.values())

    def __len__(self) -> int:
        """How many sources."""
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts.values():
            yield from part


class HeldOut:
    """All held-out text in batches of one shape, [rows, block], in a fixed order; iterate as often as you like.

    tokens    targets in all batches together        bytes    UTF-8 bytes of the text these targets spell

    The last batch is filled up with rows without targets. With `document_mask=False` batches have neither segments
    nor positions, as in training. `limit` takes whole runs of text, those with the lowest hashes, until it has that
    many tokens. A corpus with nothing held out gives no batches and 0 bytes.
    """

    def __init__(
        self, shards: Shards, *, block: int, rows: int, document_mask: bool = True, limit: int | None = None
    ) -> None:
        if rows < 1 or block < 2:
            raise UsageError(f"A batch has at least 1 row of 2 tokens: got rows={rows}, block={block}.")
        self.rows, self.block = rows, block
        self._text, lost = _gather(shards, document_mask, limit)
        self.bytes = self._text.bytes - lost
        context = _context(shards)
        self._pad = 0 if context is None else context
        self._short = not document_mask and 0 < self._text.tokens <= block  # one row, padded at its end
        bounds = np.array([0, block + 1]) if self._short else self._text.bounds
        self._layout: Layout = best_fit(bounds, block, self._pad) if document_mask else Stream(block, bounds, False)
        self._rows = self._layout.rows if self._text.tokens > 1 else 0
        self.tokens = 0 if not self._rows else self._text.tokens - 1 if self._short else self._layout.targets

    def __len__(self) -> int:
        """How many batches."""
        return -(-self._rows // self.rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._rows, self.rows):
            yield self._batch(start)

    def _batch(self, start: int) -> Batch:
        numbers = np.arange(start, start + self.rows)
        filled = self._layout.fill(self._text.padded(self.block + 1, self._pad), np.minimum(numbers, self._rows - 1))
        extra = numbers >= self._rows
        filled.targets[extra] = IGNORED
        if self._short:
            filled.targets[:, self._text.tokens - 1 :] = IGNORED
        if filled.segments is not None:
            filled.segments[extra] = 0
        return as_batch(filled)


class _Text:
    """Ids in memory as a sequence of runs."""

    def __init__(self, runs: list[Ints], size: int) -> None:
        self.ids = np.concatenate(runs) if runs else np.zeros(0, np.int64)
        self.bounds: Ints = np.cumsum([0, *map(len, runs)], dtype=np.int64)
        self.bytes = size

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, count: int) -> Ints:
        return self.ids[start : start + count]

    def padded(self, length: int, pad: int) -> _Text:
        """The same text, with padding behind it when it is shorter than `length`."""
        if self.tokens >= length:
            return self
        return _Text([self.ids, np.full(length - self.tokens, pad, np.int64)], self.bytes)


def _context(shards: Shards) -> int | None:
    return shards.bos if shards.bos is not None else shards.eos


def _gather(shards: Shards, document_mask: bool, limit: int | None) -> tuple[_Text, int]:
    """The chosen runs, each with a context token before it, and the bytes that can still not be predicted."""
    spans = shards.spans(held_out=True)
    chosen = np.arange(len(spans))
    if limit is not None:
        order = np.argsort(shards.pieces["hash"][spans.first], kind="stable")
        enough = int(np.searchsorted(np.cumsum(spans.lengths[order]), limit)) + 1
        chosen = np.sort(order[:enough])
    context = _context(shards)
    runs: list[Ints] = []
    size = lost = 0
    for run in chosen.tolist():
        ids = shards.read(int(spans.starts[run]), int(spans.lengths[run]))
        piece = shards.pieces[spans.first[run]]
        if context is None:
            lost += int(piece["lead"]) if document_mask or not runs else 0
        elif shards.bos is None or not piece["flags"] & BEGINS:
            ids = np.concatenate([np.array([context]), ids])
        runs.append(ids)
        size += int(spans.bytes[run])
    return _Text(runs, size), lost
