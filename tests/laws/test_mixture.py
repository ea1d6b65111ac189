"""Law: a mixture keeps its proportions, and is as pure as one text.

At every row of the training each source has had its due, to less than one row, whatever the weights and however they
move; a source has no more rows than its epochs allow, then the others take its place. Row n is the same row whatever
was asked before, by however many ranks, in batches of any size. Within a source every row comes once an epoch.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook.data.loader import Loader, share
from openbook.data.mixture import Change, Mixture, Source
from openbook.data.packing import Ints
from openbook.data.prepare import prepare
from openbook.data.turns import Course, Turns, course
from openbook.errors import DataError
from tests.data.tiny import SLICE, Bytes, make
from tests.laws.test_data_order import LAYOUTS, joined, same

WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any)


def dues(weights: NDArray[np.float64], limits: list[int | None]) -> list[list[float]]:
    """What each source is due behind each row, by the definition: exact fractions, one row at a time."""
    due = [Fraction(0)] * weights.shape[1]
    found = []
    for row in weights.tolist():
        left, given = Fraction(1), [Fraction(0)] * len(due)
        while left:
            room = [None if limit is None else limit - due[n] - given[n] for n, limit in enumerate(limits)]
            open_ = [Fraction(w) if room[n] is None or room[n] > 0 else Fraction(0) for n, w in enumerate(row)]  # type: ignore[operator]
            if not any(open_):
                return found
            shares = [left * one / sum(open_) for one in open_]
            shares = [one if (most := room[n]) is None else min(one, most) for n, one in enumerate(shares)]
            given = [a + b for a, b in zip(given, shares, strict=True)]
            left = 1 - sum(given)
        due = [a + b for a, b in zip(due, given, strict=True)]
        found.append([float(one) for one in due])
    return found


def check_proportions(turns: Turns, weights: NDArray[np.float64], limits: list[int | None]) -> None:
    expected = np.array(dues(weights, limits))
    rows, sources = len(expected), weights.shape[1]
    taken = np.cumsum(turns.of(0, rows)[0][:, None] == np.arange(sources), axis=0)
    assert np.abs(taken - expected).max() < 1, "a source is a whole row away from its due"
    assert all(limit is None or count <= limit for count, limit in zip(taken[-1], limits, strict=True)), "over its cap"
    if rows < len(weights):
        with pytest.raises(DataError, match=f"after {rows:,} rows"):
            turns.of(0, rows + 1)


@settings(max_examples=60)
@given(st.data())
def test_every_source_has_its_due_at_every_row(data: st.DataObject) -> None:
    first = data.draw(WEIGHTS)
    more = st.lists(st.integers(0, 1000), min_size=len(first), max_size=len(first)).filter(any)
    rows = sorted(data.draw(st.sets(st.integers(1, 250), max_size=3)))
    limits = data.draw(st.lists(st.none() | st.integers(1, 90), min_size=len(first), max_size=len(first)))
    linear, chunk = data.draw(st.booleans()), data.draw(st.sampled_from([7, 64, 8192]))
    way = course([(0, first), *((row, data.draw(more)) for row in rows)], linear=linear)
    check_proportions(Turns(way, limits, chunk=chunk), way.at(np.arange(300)), limits)


def test_plain_proportions_far_along() -> None:
    """Not by the definition but from the weights that were given: nothing drifts."""
    weights = np.array([0.7, 0.2, 0.09, 0.01])
    turns = Turns(course([(0, weights.tolist())]))
    for row in (1, 10, 999, 123_456, 300_001):
        assert np.abs(turns.taken(row) - row * weights).max() < 1


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("mixture")
    stories = prepare(SLICE, Bytes(), folder / "stories", held_out=0.1)
    (folder / "counted").mkdir()
    texts = [f"{n} and {n + 1} are {2 * n + 1}. " * 9 for n in range(60)]
    counted = make(folder / "counted", texts, held_out=0.1)
    return [Source(name="stories", shards=stories), Source(name="counted", shards=counted)]


def mixed(sources: list[Source], weights: tuple[float, ...] = (), epochs: float | None = None, **more: Any) -> Mixture:
    listed = [
        Source(
            name=source.name, shards=source.shards, weight=weight, epochs=epochs if source.name == "counted" else None
        )
        for source, weight in zip(sources, weights or [None] * len(sources), strict=True)
    ]
    return Mixture(listed, block=64, seed=5, **more)


MOVING: dict[str, Any] = {"changes": [Change(row=70, weights={"counted": 3, "stories": 1})], "linear": True}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_portions_ranks_and_resumes_make_the_same_rows(sources: list[Source], layout: dict[str, Any]) -> None:
    one, other = (mixed(sources, (2, 1), epochs=1.5, **MOVING, **layout) for _ in range(2))
    whole = one.batch(40, 90)
    assert same(
        joined([other.batch(at, 1) for at in (*range(100, 130), *range(40, 100))][30:]), joined([one.batch(40, 60)])
    )
    for parts in (2, 3, 7):
        assert same(joined([other.batch(*share(40, 90, part, parts)) for part in range(parts)]), whole)
    state = one.state(77)
    again = mixed(sources, (2, 1), epochs=1.5, **MOVING, **layout)
    assert same(again.batch(again.restore(state), 8), one.batch(77, 8))
    with pytest.raises(DataError, match="changes was"):
        mixed(sources, (2, 1), epochs=1.5, **layout).restore(state)
    with pytest.raises(DataError, match="sources was"):
        mixed(sources, (1, 2), epochs=1.5, **MOVING, **layout).restore(state)


def check_epochs(mixture: Mixture, rows: int) -> None:
    """The rows of a source are those of its loader, each once an epoch; the batches hold them."""
    turns, _ = mixture.turns(0, rows)
    numbers = mixture.numbers(0, rows)
    begins = 0
    for source, loader in enumerate(mixture.parts().values()):
        mine = numbers[turns == source] - begins
        for epoch in range(len(mine) // loader.rows):
            part = mine[epoch * loader.rows : (epoch + 1) * loader.rows]
            assert sorted(part.tolist()) == list(range(loader.rows)), "an epoch holds every row once"
        begins += loader.rows


def test_each_source_has_its_own_epochs(sources: list[Source]) -> None:
    mixture = mixed(sources, (1, 1))
    check_epochs(mixture, 700)
    turns, _ = mixture.turns(0, 30)
    for source, loader in enumerate(mixture.parts().values()):
        assert same(mixture.batch(int(np.flatnonzero(turns == source)[3]), 1), loader.batch(3, 1))
    assert mixture.seen(700) == {name: 350 / loader.rows for name, loader in mixture.parts().items()}


def test_one_source_is_that_text_alone(sources: list[Source]) -> None:
    alone = Loader(sources[0].shards, block=64, seed=5)
    assert np.array_equal(mixed(sources[:1]).numbers(0, 300), alone.numbers(0, 300))


def check_curriculum(loader: Loader) -> None:
    """In the first epoch every row comes once, and the texts of its parts are longer and longer."""
    first = loader.numbers(0, loader.rows)
    assert sorted(first.tolist()) == list(range(loader.rows)), "an epoch holds every row once"
    lengths = loader.layout.mean_lengths()[first]
    assert loader.blur or (np.diff(lengths) >= 0).all(), "short texts first"
    thirds = [part.mean() for part in np.array_split(lengths, 3)]
    assert thirds[0] < thirds[1] <= thirds[2], "short texts first"
    assert np.array_equal(loader.numbers(20, 5), first[20:25])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("blur", [0.0, 0.3])
def test_a_curriculum_has_every_row_once_and_short_texts_first(
    sources: list[Source], layout: dict[str, Any], blur: float
) -> None:
    shards = sources[0].shards
    loader, plain = (
        Loader(shards, block=48, seed=2, curriculum=how, blur=blur, **layout) for how in ("length", "none")
    )
    check_curriculum(loader)
    assert np.array_equal(loader.numbers(loader.rows, 9), plain.numbers(loader.rows, 9)), "later epochs are shuffled"
    with pytest.raises(DataError, match="curriculum was"):
        plain.restore(loader.state(1))


# --- seeded faults ------------------------------------------------------------------------------------------------


class ByChance(Turns):
    """Draws each row's source by its weight: right on average, rows away from it on the way."""

    def of(self, start: int, rows: int) -> tuple[Ints, Ints]:
        draw = np.random.default_rng(0).random(start + rows)[start:]
        turns = (draw[:, None] > np.cumsum(self.course.at(np.arange(start, start + rows)), axis=1)).sum(1)
        return turns, turns


class InLots(Turns):
    """Deals 24 rows at once, one source behind the other: right at the end of each lot only."""

    def _earliest_first(self, taken: Ints, dues: Ints, ahead: Ints) -> Ints:
        turns = super()._earliest_first(taken, dues, ahead)
        return np.concatenate([np.sort(lot) for lot in np.split(turns, range(24, len(turns), 24))])


@pytest.mark.parametrize("fault", [ByChance, InLots])
def test_fault_proportions_only_on_average(fault: type[Turns]) -> None:
    way: Course = course([(0, [5, 3, 1, 1, 1])])
    with pytest.raises(AssertionError, match="whole row away"):
        check_proportions(fault(way), way.at(np.arange(300)), [None] * 5)


class OneShuffle(Mixture):
    """Reads every source by the row of the training, not by its own."""

    def _numbers(self, start: int, rows: int) -> tuple[Ints, Ints]:
        turns, _ = super()._numbers(start, rows)
        every = np.arange(start, start + rows)
        counts = np.array([loader.rows for loader in self.loaders.values()])
        return turns, every % counts[turns]


def test_fault_sources_without_their_own_epochs(sources: list[Source]) -> None:
    with pytest.raises(AssertionError, match="every row once"):
        check_epochs(OneShuffle(mixed(sources, (1, 1)).sources, block=64), 700)


class FromThePool(Loader):
    """Draws from a growing pool of short texts, as it is often done: some rows come again, others never."""

    def _short_first(self, draw: NDArray[np.uint64]) -> Ints:
        order = super()._short_first(draw)
        return order[(draw % (1 + np.arange(self.rows, dtype=np.uint64))).astype(np.int64)]


def test_fault_a_curriculum_that_repeats_rows(sources: list[Source]) -> None:
    with pytest.raises(AssertionError, match="every row once"):
        check_curriculum(FromThePool(sources[0].shards, block=48, curriculum="length"))
    with pytest.raises(AssertionError, match="short texts first"):
        check_curriculum(Loader(sources[0].shards, block=48, curriculum="length", blur=1.0))


def test_the_very_turns_are_part_of_the_format() -> None:
    """A checkpoint of another machine or release must find its place."""
    turns = Turns(course([(0, [4, 2, 1]), (12, [0, 1, 1])]))
    assert "".join("abc"[n] for n in turns.of(0, 24)[0]) == "abaacababaabcbcbcbcbcbcb"
