"""Law: packing loses nothing and repeats nothing.

In every layout each token of a run but its first is a target exactly once, and it is predicted from the token before
it of the same run; best-fit has each token as an input exactly once; segments and positions say where runs begin; the
same runs give the same rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbook.data.packing import (
    IGNORED,
    BestFit,
    Ints,
    Layout,
    Rows,
    Sequence,
    Stream,
    Waste,
    best_fit,
    packing_report,
)
from tests.data.tiny import Run

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def check_targets(layout: Layout, run: Run, *, across: bool = False) -> None:
    """Every token but the first of its run (with `across`: of the whole) is the target of the one before it, once."""
    rows = layout.fill(run, np.arange(layout.rows))
    assert rows.ids.shape == rows.targets.shape
    counted = rows.targets != IGNORED
    assert np.array_equal(rows.targets[counted], rows.ids[counted] + 1), "a target is the next token"
    begins = run.bounds[:-1][np.diff(run.bounds) > 0]
    expected = set(run.ids.tolist()) - set([0] if across else begins.tolist())
    assert Counter(rows.targets[counted].tolist()) == Counter(expected), "each target once"
    assert layout.targets == len(expected)


def check_segments(rows: Rows, run: Run, block: int) -> None:
    """Segments number the runs of a row from 1; positions count up from 0 in each; a segment holds one run's ids."""
    assert rows.segments is not None
    assert rows.positions is not None
    owner = np.searchsorted(run.bounds, np.arange(len(run.ids)), side="right") - 1
    for ids, positions, segments in zip(rows.ids, rows.positions, rows.segments, strict=True):
        used = segments > 0
        assert not used[int(used.sum()) :].any(), "padding is behind the text"
        numbers = segments[used]
        assert numbers[0] == 1
        assert set(np.diff(numbers).tolist()) <= {0, 1}
        for number in range(1, int(numbers[-1]) + 1):
            mine = segments == number
            assert np.array_equal(positions[mine], np.arange(mine.sum()))
            assert np.array_equal(np.diff(ids[mine]), np.ones(mine.sum() - 1))
            assert len(set(owner[ids[mine]].tolist())) == 1
        assert not positions[~used].any()
    assert rows.ids.shape[1] == block


@given(LENGTHS, st.integers(2, 24))
def test_best_fit(lengths: list[int], block: int) -> None:
    run = Run(lengths)
    layout = best_fit(run.bounds, block, pad=-7)
    rows = layout.fill(run, np.arange(layout.rows))
    assert rows.segments is not None
    text = rows.segments > 0
    assert sorted(rows.ids[text].tolist()) == run.ids.tolist(), "each token is an input once"
    assert (rows.ids[~text] == -7).all()
    assert (rows.targets[~text] == IGNORED).all()
    check_targets(layout, run)
    if layout.rows:
        check_segments(rows, run, block)
    again = best_fit(run.bounds, block)
    assert np.array_equal(layout.starts, again.starts)
    assert np.array_equal(layout.first, again.first)


@given(LENGTHS, st.integers(2, 24))
def test_best_fit_leaves_no_two_rows_that_fit_into_one(lengths: list[int], block: int) -> None:
    layout = best_fit(Run(lengths).bounds, block)
    used = sorted(np.add.reduceat(layout.lengths, layout.first[:-1]).tolist()) if layout.rows else []
    assert all(0 < size <= block for size in used)
    assert len(used) < 2 or used[0] + used[1] > block
    assert layout.rows <= -(-2 * sum(lengths) // block) + 1


def test_best_fit_is_best_fit_decreasing() -> None:
    """The same number of rows as the textbook algorithm, item by item."""
    random = np.random.default_rng(3)
    for block in (7, 64, 257):
        lengths = random.integers(1, block + 1, size=400)
        spaces: list[int] = []
        for length in sorted(lengths.tolist(), reverse=True):
            fitting = [(space, at) for at, space in enumerate(spaces) if space >= length]
            if fitting:
                spaces[min(fitting)[1]] -= length
            else:
                spaces.append(block - length)
        assert best_fit(Run(lengths.tolist()).bounds, block).rows == len(spaces)


@given(LENGTHS, st.integers(2, 24), st.booleans())
def test_stream(lengths: list[int], block: int, masked: bool) -> None:
    run = Run([*lengths, block + 1])  # a loader refuses text that does not fill a row
    layout = Stream(block, run.bounds, masked)
    check_targets(layout, run, across=not masked)
    rows = layout.fill(run, np.arange(layout.rows))
    if masked:
        check_segments(rows, run, block)
        assert (rows.segments != 0).all(), "a stream has no padding"  # type: ignore[union-attr]
    else:
        assert rows.segments is None
        assert rows.positions is None


def check_waste(waste: Waste, layout: Layout, run: Run) -> None:
    """What the filled rows themselves show: a text's rows, and the tokens whose position is not that in their text."""
    rows = layout.fill(run, np.arange(layout.rows))
    assert rows.segments is not None
    assert rows.positions is not None
    text = rows.segments > 0
    ids, first = np.unique(rows.ids[text], return_index=True)  # a stream's last row repeats some
    owner = np.searchsorted(run.bounds, ids, side="right") - 1
    behind = rows.positions[text][first] < ids - run.bounds[owner]
    texts = int((np.diff(run.bounds) > 0).sum())
    assert waste.rows == layout.rows
    assert waste.padding == pytest.approx(1 - text.mean()), "padding"
    assert waste.context == pytest.approx(behind.sum() / len(run.ids), abs=1.01 / len(run.ids)), "context"
    assert waste.cut == pytest.approx(len(np.unique(owner[behind])) / texts, abs=1.01 / texts), "cut"


@given(LENGTHS, st.integers(2, 24))
def test_the_waste_is_that_of_the_rows(lengths: list[int], block: int) -> None:
    run = Run([*lengths, block + 1])
    report = packing_report(run, block)
    check_waste(report["best-fit"], best_fit(run.bounds, block), run)
    if (run.bounds[-1] - 1) % block == 0:  # else the last row begins earlier, which saves it some context
        check_waste(report["stream"], Stream(block, run.bounds, True), run)


def test_the_waste_of_a_few_texts() -> None:
    report = packing_report(Run([5, 4, 2, 20]), 8)
    assert report["best-fit"] == Waste(4, 1 / 32, 1 / 4, 12 / 31)
    assert report["stream"] == Waste(4, 0.0, 2 / 4, (1 + 15) / 31)
    assert packing_report(Run([]), 8)["stream"] == Waste(0, 0.0, 0.0, 0.0)


def test_fault_the_waste_of_another_packing() -> None:
    run = Run([5, 4, 2, 20])
    with pytest.raises(AssertionError, match="padding"):
        check_waste(packing_report(run, 8)["stream"], best_fit(run.bounds, 8), run)


def test_rows_are_filled_alone_as_together() -> None:
    run = Run([5, 30, 1, 9, 14, 3, 22])
    for layout in (best_fit(run.bounds, 8), Stream(8, run.bounds, True), Stream(8, run.bounds, False)):
        whole = layout.fill(run, np.arange(layout.rows))
        for row in range(layout.rows):
            one = layout.fill(run, np.array([row]))
            assert np.array_equal(one.ids[0], whole.ids[row])
            assert np.array_equal(one.targets[0], whole.targets[row])


@pytest.mark.slow
def test_a_million_documents_take_seconds() -> None:
    random = np.random.default_rng(0)
    bounds = np.concatenate([[0], np.cumsum(random.lognormal(5.8, 1.2, 1_000_000).astype(np.int64) + 1)])
    assert best_fit(bounds, 2048).used > 0.99


# --- seeded faults: the checks above must see these ---------------------------------------------------------------


@dataclass(frozen=True)
class RepeatsItsTail(Stream):
    """Forgets that the last row begins earlier."""

    def fill(self, sequence: Sequence, rows: Ints) -> Rows:
        filled = super().fill(sequence, rows)
        starts = np.minimum(rows * self.block, self.tokens - 1 - self.block)
        targets = np.stack([sequence.read(int(start) + 1, self.block) for start in starts])
        return replace(filled, targets=targets)


def test_fault_last_target_of_a_cut_document_is_lost() -> None:
    run = Run([20, 3])
    layout = best_fit(run.bounds, 8)
    check_targets(layout, run)
    with pytest.raises(AssertionError, match="each target once"):
        check_targets(replace(layout, goes_on=np.zeros_like(layout.goes_on)), run)


def test_fault_documents_run_into_each_other() -> None:
    run = Run([6, 5, 4])
    fault = BestFit(16, np.array([0, 1]), np.array([0]), np.array([15]), np.array([False]))
    with pytest.raises(AssertionError, match="each target once"):
        check_targets(fault, run)
    with pytest.raises(AssertionError):
        check_segments(fault.fill(run, np.array([0])), run, 16)


def test_fault_repeated_tail_is_predicted_twice() -> None:
    run = Run([21])
    check_targets(Stream(8, run.bounds, False), run, across=True)
    with pytest.raises(AssertionError, match="each target once"):
        check_targets(RepeatsItsTail(8, run.bounds, False), run, across=True)
