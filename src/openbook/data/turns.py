"""Whose turn it is: one source for every row of a training, so that none is ever a whole row away from its due.

    due(r)    the rows a source should have had before row r: the sum of its shares of the rows 0 … r-1
    taken(r)  the rows it has had                          law: |taken(r) - due(r)| < 1, for every source at every row

This is the chairman assignment problem (Tijdeman 1980, Discrete Mathematics 32): N sources take turns, and

    - a source may take a row once it is due by 1/(2N-2) of one,
    - of those that may, the one takes it that will be 1 - 1/(2N-2) of a row behind soonest (earliest deadline first),

which keeps all of them within 1 - 1/(2N-2) of their due, whatever the shares and however they change from row to row.

The dues are whole numbers of 2⁻³² of a row and add up exactly, on every machine. Rows are dealt in chunks, each from
the counts at its beginning; those counts are only a memory: what a row is depends on nothing but its number.

Symbols: N sources, C rows of a chunk.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from openbook.data.packing import Ints
from openbook.errors import DataError

ROW = 1 << 32  # one row, in the unit of dues
LAST = 1 << 30  # rows at most: their dues fit 64 bits
CHUNK = 1 << 13
KEPT = 8  # dealt chunks that are remembered


@dataclass(frozen=True)
class Course:
    """How weights move over the rows: those of `weights[p]` hold from row `rows[p]` on, or are reached there in a line.

    Only the proportions of a row's weights count. Before the first point and behind the last they stay as they are.
    """

    rows: Ints  # [P] rising
    weights: NDArray[np.float64]  # [P,N], each point adds up to 1
    linear: bool = False

    def at(self, rows: Ints) -> NDArray[np.float64]:
        """The weights of these rows, [rows,N]."""
        if not self.linear:
            point = np.searchsorted(self.rows, rows, side="right") - 1
            return self.weights[np.maximum(point, 0)]
        return np.stack([np.interp(rows, self.rows, column) for column in self.weights.T], axis=1)


@dataclass(frozen=True)
class _Chunk:
    """Rows of one chunk that exist (all C, fewer only where the sources end)."""

    taken: Ints  # [N] before the first row
    turns: Ints  # [rows] the source of each
    places: Ints  # [rows] how manieth row of its source each is, from 0


class Turns:
    """The source of every row, for weights that follow `course`; source n has no more than `limits[n]` rows.

    When a source has had all of its rows the others share its place in proportion to their weights. Safe to call from
    several threads.
    """

    def __init__(self, course: Course, limits: Sequence[int | None] = (), *, chunk: int = CHUNK) -> None:
        self.course, self.chunk = course, chunk
        self.sources = course.weights.shape[1]
        given = limits or [None] * self.sources
        self._limits = np.array([LAST if limit is None else min(limit, LAST) for limit in given], np.int64) * ROW
        self._slack = ROW // max(1, 2 * self.sources - 2)
        self._lock = threading.Lock()
        nothing = np.zeros(self.sources, np.int64)
        self._dues: list[Ints] = [nothing]  # [N] at the beginning of each chunk
        self._taken: list[Ints] = [nothing]
        self._dealt: dict[int, _Chunk] = {}
        self._end = LAST  # rows there are at most, as far as is known

    def of(self, start: int, rows: int) -> tuple[Ints, Ints]:
        """The source of rows `start` … `start+rows-1`, and how manieth of its rows each is: two arrays [rows].

        Raises `DataError` where all sources have had all of their rows.
        """
        turns, places, at, end = [], [], start, start + rows
        if end > LAST:
            raise DataError(f"A mixture has at most {LAST:,} rows: row {end - 1:,} was asked for.")
        while at < end:
            number, first = divmod(at, self.chunk)
            dealt = self._deal(number)
            last = min(self.chunk, first + end - at)
            if len(dealt.turns) < last:
                raise DataError(
                    f"All sources have had their epochs after {self._end:,} rows, and row {end - 1:,} was asked for. "
                    "Allow a source more epochs, add text, or train for fewer steps."
                )
            turns.append(dealt.turns[first:last])
            places.append(dealt.places[first:last])
            at += last - first
        return np.concatenate(turns), np.concatenate(places)

    def taken(self, row: int) -> Ints:
        """How many rows each source has had before `row`, [N]."""
        if row == 0:
            return self._taken[0]
        number, left = divmod(row, self.chunk)
        if left == 0:
            number, left = number - 1, self.chunk
        self.of(row - 1, 1)  # an error where the sources end before
        dealt = self._deal(number)
        return dealt.taken + np.bincount(dealt.turns[:left], minlength=self.sources)

    def _deal(self, number: int) -> _Chunk:
        with self._lock:
            if number in self._dealt:
                return self._dealt[number]
            known = min(number, len(self._taken) - 1)
            for at in range(known, number + 1):
                dealt = self._dealt.get(at) or self._deal_from(at)
                if len(dealt.turns) < self.chunk:
                    break
            while len(self._dealt) >= KEPT:
                del self._dealt[next(iter(self._dealt))]
            self._dealt[number] = dealt if at == number else _Chunk(dealt.taken, dealt.turns[:0], dealt.places[:0])
            return self._dealt[number]

    def _deal_from(self, number: int) -> _Chunk:
        """Deal a chunk whose beginning is known; the beginning of the next is then known too."""
        taken, dues = self._taken[number], self._flow(number)
        turns = self._earliest_first(taken, dues, self._flow(number + 1) if len(dues) == self.chunk else dues[:0])
        places = np.zeros(len(turns), np.int64)
        for source in range(self.sources):
            mine = turns == source
            places[mine] = taken[source] + np.arange(int(mine.sum()))
        if len(turns) < self.chunk:
            self._end = number * self.chunk + len(turns)
        elif len(self._taken) == number + 1:
            self._taken.append(taken + np.bincount(turns, minlength=self.sources))
        return _Chunk(taken, turns, places)

    def _earliest_first(self, taken: Ints, dues: Ints, ahead: Ints) -> Ints:
        """The source of each row of `dues` [C,N]; `ahead` are the dues of the chunk behind it, for deadlines there."""
        rows = len(dues)
        if not rows or self.sources == 1:
            return np.zeros(rows, np.int64)
        known = np.concatenate([dues, ahead])
        opens, keys = [], []
        for source in range(self.sources):
            due = known[:, source]
            count = max(0, int(due[rows - 1] - self._slack) // ROW + 1 - int(taken[source]))
            turn = (int(taken[source]) + np.arange(count)) * ROW  # what it has had when this turn comes
            opens.append(np.searchsorted(due[:rows], turn + self._slack))
            deadline = np.searchsorted(due, turn + ROW - self._slack)
            # Beyond what is known: as if its share stayed. One whole chunk lies between, so the order of those there
            # does not matter yet.
            share = max(1, int(due[-1] - due[-2])) if len(due) > 1 else 1
            beyond = len(due) + (turn + ROW - self._slack - due[-1]) // share
            deadline = np.where(deadline < len(due), deadline, np.minimum(beyond, 1 << 40))
            keys.append(deadline * self.sources + source)
        opened, key = np.concatenate(opens), np.concatenate(keys)
        order = np.argsort(opened, kind="stable")
        opened_at, sorted_keys = opened[order].tolist(), key[order].tolist()
        waiting: list[int] = []
        turns, at = [], 0
        for row in range(rows):
            while at < len(opened_at) and opened_at[at] <= row:
                heappush(waiting, sorted_keys[at])
                at += 1
            turns.append(heappop(waiting) % self.sources)
        return np.array(turns, np.int64)

    def _flow(self, number: int) -> Ints:
        """The dues behind each row of a chunk [C,N], as if rows could be divided; fewer rows where the sources end."""
        due = self._dues[number].copy()
        weights = self.course.at(np.arange(number * self.chunk, (number + 1) * self.chunk))
        flows: list[Ints] = []
        at = 0
        while at < self.chunk:
            shares = _shares(weights[at:] * (due < self._limits))
            sums = due + np.cumsum(shares, axis=0)
            over = np.flatnonzero((sums > self._limits).any(axis=1) | (shares[:, -1] < 0))
            whole = int(over[0]) if len(over) else len(sums)
            flows.append(sums[:whole])
            due = sums[whole - 1] if whole else due
            at += whole
            if at < self.chunk:  # one reaches its limit in this row
                last = self._share_out(due, weights[at])
                if last is None:
                    break
                due = due + last
                flows.append(due[None])
                at += 1
        found = np.concatenate(flows) if flows else np.zeros((0, self.sources), np.int64)
        if len(found) == self.chunk and len(self._dues) == number + 1:
            self._dues.append(found[-1])
        return found

    def _share_out(self, due: Ints, weights: NDArray[np.float64]) -> Ints | None:
        """One row shared out to those that may still have some, [N]; None when there is not enough room for a row."""
        given = np.zeros(self.sources, np.int64)
        left = ROW
        while left:
            room = self._limits - due - given
            shares = _shares((weights * (room > 0))[None], left)[0]
            if shares[-1] < 0:
                return None
            given += np.minimum(shares, room)
            left = ROW - int(given.sum())
        return given


def _shares(weights: NDArray[np.float64], whole: int = ROW) -> Ints:
    """`whole` divided in these proportions, [rows,N] whole numbers that add up; -1 at the end of a row without any."""
    sums = np.cumsum(weights, axis=1)
    total = sums[:, -1:]
    edges = np.rint(sums / np.where(total > 0, total, 1.0) * whole).astype(np.int64)
    edges[total[:, 0] <= 0, -1] = -1
    return np.diff(edges, axis=1, prepend=0)


def course(points: Sequence[tuple[int, Sequence[float]]], *, linear: bool = False) -> Course:
    """A `Course` from (row, weights) points; weights are 0 or more and one of each point is above 0."""
    rows = [row for row, _ in points]
    assert rows == sorted(set(rows)), rows
    assert bisect_right(rows, -1) == 0, rows
    table = np.array([weights for _, weights in points], np.float64)
    return Course(np.array(rows, np.int64), table / np.cumsum(table, axis=1)[:, -1:], linear)
