"""Law: the order of training rows is a pure function of the seed and the row number.

Whatever was asked before, by whichever thread, in whatever portions, by however many ranks: row n of the training is
the same row. Each epoch holds each row once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openbook.data.batch import Batch
from openbook.data.loader import Loader, share
from openbook.data.packing import Ints
from openbook.data.prepare import prepare
from openbook.data.shards import Shards
from openbook.errors import DataError, UsageError
from tests.data.tiny import SLICE, Bytes

LAYOUTS: list[dict[str, Any]] = [
    {"packing": "best-fit"},
    {"packing": "stream"},
    {"packing": "stream", "document_mask": False},
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return prepare(SLICE, Bytes(), tmp_path_factory.mktemp("order") / "out", held_out=0.1, shard_tokens=40_000)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.ids, b.ids), (a.positions, b.positions), (a.segments, b.segments)]
    pairs.append((a.targets["language"], b.targets["language"]))
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def joined(batches: list[Batch]) -> Batch:
    def cat(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
        return None if tensors[0] is None else torch.cat([t for t in tensors if t is not None])

    ids = torch.cat([b.ids for b in batches])
    targets = {"language": torch.cat([b.targets["language"] for b in batches])}
    positions, segments = cat([b.positions for b in batches]), cat([b.segments for b in batches])
    return Batch(ids=ids, positions=positions, segments=segments, targets=targets)


def check_pure(one: Loader, other: Loader) -> None:
    """`one` is asked in order, `other` out of order and twice."""
    starts = list(range(0, 2 * one.rows, 7))
    expected = [one.numbers(start, 7) for start in starts]
    for at in [*reversed(range(len(starts))), *range(0, len(starts), 3)]:
        assert np.array_equal(other.numbers(starts[at], 7), expected[at]), "the order depends on what was asked before"


def check_epochs(loader: Loader) -> None:
    epochs = [loader.numbers(epoch * loader.rows, loader.rows) for epoch in range(3)]
    for numbers in epochs:
        assert sorted(numbers.tolist()) == list(range(loader.rows)), "an epoch holds every row once"
    assert not np.array_equal(epochs[0], epochs[1]), "each epoch is shuffled anew"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_is_pure(shards: Shards, layout: dict[str, Any]) -> None:
    make = [Loader(shards, block=64, seed=5, **layout) for _ in range(2)]
    check_pure(*make)
    check_epochs(make[0])
    assert same(make[0].batch(9, 4), make[1].batch(9, 4))
    other = Loader(shards, block=64, seed=6, **layout)
    assert not np.array_equal(other.numbers(0, other.rows), make[0].numbers(0, other.rows))


def test_order_is_this_one(shards: Shards) -> None:
    """A checkpoint of another machine or release must find its place: the very numbers are part of the format."""
    loader = Loader(shards, block=64, seed=5)
    loader.rows = 10
    assert loader.numbers(0, 20).tolist() == [3, 4, 6, 5, 1, 9, 0, 7, 2, 8, 7, 1, 8, 4, 9, 6, 0, 5, 2, 3]


def test_portions_ranks_and_micro_batches_make_the_same_step(shards: Shards) -> None:
    for layout in LAYOUTS:
        loader = Loader(shards, block=64, seed=5, **layout)
        start, rows = loader.rows - 11, 24  # over the border of two epochs
        whole = loader.batch(start, rows)
        for parts in ((1,), (2,), (3, 2), (5,), (2, 4)):
            pieces = [(start, rows)]
            for count in parts:
                pieces = [share(*piece, part, count) for piece in pieces for part in range(count)]
            assert same(joined([loader.batch(*piece) for piece in pieces]), whole)


@given(st.integers(0, 10**12), st.integers(1, 999), st.integers(1, 64))
def test_shares_are_disjoint_and_everything(start: int, rows: int, parts: int) -> None:
    if rows < parts:
        with pytest.raises(UsageError, match="cannot be shared"):
            share(start, rows, 0, parts)
        return
    shares = [share(start, rows, part, parts) for part in range(parts)]
    assert [row for first, count in shares for row in range(first, first + count)] == list(range(start, start + rows))
    assert {count for _, count in shares} <= {rows // parts, rows // parts + 1}


def test_growing_batches_read_on(shards: Shards) -> None:
    loader = Loader(shards, block=64, seed=1)
    row, seen = 0, []
    for rows in (1, 2, 2, 4, 8, 3):
        seen.append(loader.batch(row, rows))
        row += rows
    assert same(joined(seen), loader.batch(0, row))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_is_uninterrupted(shards: Shards, layout: dict[str, Any]) -> None:
    first = Loader(shards, block=64, seed=2, **layout)
    state = first.state(40)
    resumed = Loader(Shards.open(shards.folder), block=64, seed=2, **layout)
    row = resumed.restore(state)
    assert row == 40
    assert same(resumed.batch(row, 8), first.batch(40, 8))


def test_resuming_on_other_data_is_refused(shards: Shards, tmp_path: Path) -> None:
    state = Loader(shards, block=64, seed=2).state(3)
    for settings, says in (
        ({"block": 32}, "block was 64 and is 32"),
        ({"block": 64, "seed": 3}, "seed was 2"),
        ({"block": 64, "packing": "stream"}, "packing was 'best-fit'"),
    ):
        with pytest.raises(DataError, match=says):
            Loader(shards, **{"seed": 2, **settings}).restore(state)
    other = prepare(SLICE, Bytes(), tmp_path / "other", held_out=0.2)
    with pytest.raises(DataError, match="data was"):
        Loader(other, block=64, seed=2).restore(state)
    for row in (None, -1, "7"):
        with pytest.raises(DataError, match="damaged"):
            Loader(shards, block=64, seed=2).restore({**state, "row": row})


# --- seeded faults ------------------------------------------------------------------------------------------------


class Remembers(Loader):
    """Shuffles with a generator that moves on with every question."""

    asked = 0

    def numbers(self, start: int, rows: int) -> Ints:
        self.asked += 1
        return (super().numbers(start, rows) + self.asked) % self.rows


class SkipsTheEnd(Loader):
    """Drops the rows behind the last full batch of an epoch, and fills up from its begin."""

    def numbers(self, start: int, rows: int) -> Ints:
        return super().numbers(start, rows) % (self.rows // 7 * 7)


def test_fault_order_with_a_memory(shards: Shards) -> None:
    with pytest.raises(AssertionError, match="what was asked before"):
        check_pure(Remembers(shards, block=64), Remembers(shards, block=64))


def test_fault_dropped_rows(shards: Shards) -> None:
    loader = SkipsTheEnd(shards, block=61)
    assert loader.rows % 7, "the fault needs a rest"
    with pytest.raises(AssertionError, match="every row once"):
        check_epochs(loader)
