"""Rows of exactly `block` tokens out of a sequence of documents. Numpy only.

    best-fit   documents whole where they fit, several to a row, each its own segment:   |aaaaa bbb cc ·|dddddddddd·|
    stream     the documents one after the other, cut every `block` tokens:              |aaaaa bbb cc d|ddddddddd e…

Best-fit (Ding et al., "Fewer Truncations Improve Language Modeling", 2024) cuts only documents longer than a row and
pads what is left; best-fit-decreasing leaves no two rows that fit into one, so more than half of all places hold
text, and in practice 97% and more. It works on the histogram of lengths (as Krell et al., 2021), so that millions of
documents take a second. Stream has no padding, which makes plain causal attention right for every row: the fastest
way to train.

In both layouts every token of a run but its first is a target exactly once, and a token's target is the next token of
the same document. Symbols: N runs of text, R rows, P parts (a part is a stretch of one run that lies in one row),
T = block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
IGNORED = -100  # a target that no objective counts: padding, and the last token of a document


class Sequence(Protocol):
    """Runs of ids seen as one: run n is ids `bounds[n]` … `bounds[n+1]-1`."""

    @property
    def bounds(self) -> Ints: ...
    def read(self, start: int, count: int) -> Ints: ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Filled rows, all [B,T]. `positions` and `segments` are None where every row is one unbroken run."""

    ids: Ints
    targets: Ints
    positions: Ints | None
    segments: Ints | None


class Layout(Protocol):
    """A way to lay a sequence out in rows."""

    @property
    def rows(self) -> int: ...
    @property
    def targets(self) -> int: ...  # how many tokens are predicted in all rows together
    def mean_lengths(self) -> NDArray[np.float64]: ...  # [R] tokens of the texts in each row, on average
    def parts(self, rows: Ints) -> tuple[Ints, Ints, Ints]: ...  # stretches of the sequence: begin, end, row of each
    def fill(self, sequence: Sequence, rows: Ints) -> Rows: ...


@dataclass(frozen=True)
class BestFit:
    """Row r holds the parts `first[r]` … `first[r+1]-1`."""

    block: int
    first: Ints  # [R+1]
    starts: Ints  # [P] in the sequence
    lengths: Ints  # [P]
    goes_on: NDArray[np.bool_]  # [P] the run has a next token behind this part
    pad: int = 0

    @property
    def rows(self) -> int:
        return len(self.first) - 1

    @property
    def targets(self) -> int:
        return int((self.lengths - 1 + self.goes_on).sum())

    @property
    def used(self) -> float:
        """The part of all places that hold text."""
        return float(self.lengths.sum()) / (self.rows * self.block)

    def mean_lengths(self) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(self.lengths, self.first[:-1]) / np.diff(self.first))

    def parts(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        counts = self.first[rows + 1] - self.first[rows]
        part = np.repeat(self.first[rows], counts) + _count_up(counts)
        return self.starts[part], self.starts[part] + self.lengths[part], np.repeat(rows, counts)

    def fill(self, sequence: Sequence, rows: Ints) -> Rows:
        shape = (len(rows), self.block)
        ids, targets = np.full(shape, self.pad, np.int64), np.full(shape, IGNORED, np.int64)
        positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, number in enumerate(rows.tolist()):
            at = 0
            for segment, part in enumerate(range(int(self.first[number]), int(self.first[number + 1])), start=1):
                count, more = int(self.lengths[part]), int(self.goes_on[part])
                chunk = sequence.read(int(self.starts[part]), count + more)
                here = slice(at, at + count)
                ids[row, here] = chunk[:count]
                targets[row, at : at + count - 1 + more] = chunk[1:]
                positions[row, here] = np.arange(count)
                segments[row, here] = segment
                at += count
        return Rows(ids, targets, positions, segments)


@dataclass(frozen=True)
class Stream:
    """Row r holds tokens r·T … of the sequence and predicts each one's next.

    The last row begins earlier when it would not be full; what it then repeats is not predicted again. With `masked`,
    runs are segments of their own and no token predicts another run's first; without, text runs on over the borders.
    """

    block: int
    bounds: Ints  # [N+1] where runs begin and end in the sequence
    masked: bool

    @property
    def tokens(self) -> int:
        return int(self.bounds[-1])

    @property
    def rows(self) -> int:
        return max(0, -(-(self.tokens - 1) // self.block))

    @property
    def targets(self) -> int:
        return self.tokens - (int((np.diff(self.bounds) > 0).sum()) if self.masked else 1)

    def mean_lengths(self) -> NDArray[np.float64]:
        starts = np.minimum(np.arange(self.rows) * self.block, self.tokens - 1 - self.block)
        first, last = (
            np.searchsorted(self.bounds, places, side="right") for places in (starts, starts + self.block - 1)
        )
        return np.asarray(self.block / (last - first + 1))

    def parts(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        starts = rows * self.block
        return starts, np.minimum(starts + self.block, self.tokens - 1), rows

    def fill(self, sequence: Sequence, rows: Ints) -> Rows:
        last = self.tokens - 1 - self.block  # where the last full row begins
        assert last >= 0, "a stream shorter than one row"
        starts = np.minimum(rows * self.block, last)
        chunks = np.stack([sequence.read(int(start), self.block + 1) for start in starts])
        ids, targets = chunks[:, :-1], chunks[:, 1:].copy()
        repeated = rows * self.block - starts
        targets[np.arange(self.block) < repeated[:, None]] = IGNORED
        if not self.masked:
            return Rows(np.ascontiguousarray(ids), targets, None, None)
        places = starts[:, None] + np.arange(self.block + 1)  # [B,T+1] in the sequence
        run = np.searchsorted(self.bounds, places, side="right") - 1
        targets[run[:, 1:] != run[:, :-1]] = IGNORED
        run, places = run[:, :-1], places[:, :-1]
        begin = np.maximum(self.bounds[run], starts[:, None])  # positions restart in each row
        new = np.diff(run, axis=1, prepend=run[:, :1]) != 0
        return Rows(np.ascontiguousarray(ids), targets, places - begin, 1 + np.cumsum(new, axis=1))


def best_fit(bounds: Ints, block: int, pad: int = 0) -> BestFit:
    """Pack the runs `bounds` [N+1] into rows of `block`; runs longer than a row are cut into full rows and a rest.

    Deterministic; O(N log N) for sorting and about one step per distinct length for packing.
    """
    assert block >= 1
    begins, lengths = bounds[:-1], np.diff(bounds)
    full, rest = np.divmod(lengths, block)
    whole = np.repeat(begins, full) + block * _count_up(full)  # starts of the parts that fill a row alone
    whole_ends = np.repeat(bounds[1:], full)
    has_rest = np.flatnonzero(rest)
    row_of, rows = _pack(rest[has_rest], block)
    order = np.argsort(row_of, kind="stable")
    starts = np.concatenate([whole, (begins + full * block)[has_rest][order]])
    sizes = np.concatenate([np.full(len(whole), block), rest[has_rest][order]])
    parts_in_row = np.concatenate([np.ones(len(whole), np.int64), np.bincount(row_of, minlength=rows)])
    goes_on = np.concatenate([whole + block < whole_ends, np.zeros(len(order), dtype=bool)])
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(parts_in_row)])
    return BestFit(block, first, starts, sizes, goes_on, pad)


@dataclass(frozen=True)
class Waste:
    """What a way of packing costs; all are parts from 0 to 1."""

    rows: int
    padding: float  # of all places: hold no text
    cut: float  # of the texts: do not stand in one row
    context: float  # of the tokens: something before them in their text is not in their row


def packing_report(sequence: Sequence, block: int) -> dict[str, Waste]:
    """What each way of packing these texts in rows of `block` costs (Ding et al. 2024, §3)."""
    begins, lengths = sequence.bounds[:-1], np.diff(sequence.bounds)
    begins, lengths = begins[lengths > 0], lengths[lengths > 0]
    texts, tokens = max(1, len(lengths)), max(1, int(lengths.sum()))
    fitted, flowing = best_fit(sequence.bounds, block), Stream(block, sequence.bounds, True)
    found = {}
    for name, rows, room, padding in (
        ("best-fit", fitted.rows, np.full(len(lengths), block), 1 - fitted.used if fitted.rows else 0.0),
        ("stream", flowing.rows, block - begins % block, 0.0),
    ):
        behind = np.maximum(lengths - room, 0)  # tokens behind the first row of a text
        found[name] = Waste(rows, padding, int((behind > 0).sum()) / texts, int(behind.sum()) / tokens)
    return found


def _count_up(counts: Ints) -> Ints:
    """[2,3] → [0,1,0,1,2]."""
    ends = np.cumsum(counts)
    return np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)


def _pack(lengths: Ints, block: int) -> tuple[Ints, int]:
    """Best-fit-decreasing: the row of each item [N], and how many rows there are. Items are from 1 to `block`.

    Rows with the same space left are interchangeable, so they wait together: `waiting[space]` lists arrays of rows.
    All items of one length are dealt at once to the fullest rows that still take them; a row with space for q of them
    takes q.
    """
    row_of = np.zeros(len(lengths), np.int64)
    rows = 0
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=block + 1))
    waiting: dict[int, list[Ints]] = {}
    spaces: list[int] = []  # the keys of `waiting`, sorted
    smallest = int(ordered[-1]) if len(ordered) else 0

    def put_back(space: int, bins: Ints) -> None:
        if len(bins) and space >= smallest:
            if space not in waiting:
                insort(spaces, space)
                waiting[space] = []
            waiting[space].append(bins)

    ends = np.append(begins, len(order))[1:]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        length, at = int(ordered[begin]), begin
        while at < end:
            found = bisect_left(spaces, length)
            if found < len(spaces):
                space = spaces[found]
                bins = waiting[space].pop()
                if not waiting[space]:
                    del waiting[space]
                    spaces.pop(found)
            else:
                space = block
                opened = -(-(end - at) // (block // length))
                bins = np.arange(rows, rows + opened)
                rows += opened
            each = space // length
            filled = min(len(bins), (end - at) // each)
            row_of[order[at : at + filled * each]] = np.repeat(bins[:filled], each)
            put_back(space - each * length, bins[:filled])
            at += filled * each
            if filled < len(bins):
                left = min(end - at, each)
                row_of[order[at : at + left]] = bins[filled]
                put_back(space - left * length, bins[filled : filled + 1])
                put_back(space, bins[filled + 1 :])
                at += left
    return row_of, rows
