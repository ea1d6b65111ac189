"""Law 6: whatever comes, is cancelled, forks, drafts, breaks or is preempted, everyone ends once and all comes back.

Seeded faults, each of which must make it fail: a reference forgotten, a copy before writing skipped, a window given
back one page early, a snapshot of the wrong border, a digest that ignores what came before.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from openbook.generate import pages
from openbook.generate.entries import Entry, digest_of
from openbook.generate.pages import Pool
from openbook.generate.plan import Ask, Sequence
from tests.laws.pretend import SHAPES, World, drive, tight


class Life(RuleBasedStateMachine):
    """Anything in any order."""

    world: World | None = None

    @initialize(
        kind=st.sampled_from(sorted(SHAPES)),
        seed=st.integers(0, 1 << 20),
        spare=st.sampled_from([0, 1, 7, 40]),
        ttl=st.sampled_from([None, 3.0]),
    )
    def begin(self, kind: str, seed: int, spare: int, ttl: float | None) -> None:
        self.world = World(SHAPES[kind], seed, tight(SHAPES[kind]) + spare, ttl)

    @rule(count=st.integers(1, 4))
    def arrive(self, count: int) -> None:
        assert self.world is not None
        for _ in range(count):
            self.world.arrive()

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        assert self.world is not None
        for _ in range(count):
            self.world.step()

    @precondition(lambda self: self.world is not None and self.world.live)
    @rule()
    def cancel(self) -> None:
        assert self.world is not None
        self.world.cancel()

    @precondition(lambda self: self.world is not None and self.world.live)
    @rule()
    def hold(self) -> None:
        assert self.world is not None
        self.world.hold()

    @rule()
    def break_down(self) -> None:
        assert self.world is not None
        self.world.step(broken=True)

    def teardown(self) -> None:
        if self.world is not None:
            self.world.close()


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLife = Life.TestCase


def lives(kind: str, seeds: range) -> tuple[int, int]:
    hits = preempted = 0
    for seed in seeds:
        memory = tight(SHAPES[kind]) + (0, 3, 30)[seed % 3]
        scheduler = drive(SHAPES[kind], seed, memory=memory, ttl=3.0 if seed % 2 else None).scheduler
        hits += scheduler.pool.hits
        preempted += scheduler.preemptions
    return hits, preempted


@pytest.mark.parametrize("kind", SHAPES)
def test_everything_comes_back(kind: str) -> None:
    hits, preempted = lives(kind, range(12))
    assert hits > 0
    assert preempted > 0 or kind == "slots"  # a slot does not grow


@pytest.mark.soak
@pytest.mark.parametrize("kind", SHAPES)
def test_everything_comes_back_for_a_long_time(kind: str) -> None:
    lives(kind, range(12, 500))


def _forget_reference(patch: pytest.MonkeyPatch) -> None:
    def fork(self: Pool, parent: Sequence, child: Sequence, real: Callable[..., bool] = Pool.fork) -> bool:
        done = real(self, parent, child)
        if child.tables[0] and child.tables[0][-1] >= 0:
            self.groups[0].refs[child.tables[0][-1]] -= 1
        return done

    patch.setattr(Pool, "fork", fork)


def _skip_copy(patch: pytest.MonkeyPatch) -> None:
    def grow(self: Pool, sequence: Sequence, end: int, real: Callable[..., bool] = Pool.grow) -> bool:
        done = real(self, sequence, end)
        self.copies.clear()
        return done

    patch.setattr(Pool, "grow", grow)


def _early_window(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Pool, sequence: Sequence, computed: int, real: Callable[..., None] = Pool.settle) -> None:
        real(self, sequence, computed)
        for group, (table, of) in enumerate(zip(sequence.tables, self.shape.groups, strict=True)):
            first = self._first_seen(group, computed)
            if of.window is not None and computed > (first + 1) * self.shape.page and table[first] >= 0:
                self._give_back(sequence, group, first)

    patch.setattr(Pool, "settle", settle)


def _wrong_border(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Pool, sequence: Sequence, border: int, number: int, real: Callable[..., None]) -> None:
        real(self, sequence, max(self.shape.page, border - self.shape.page), number)

    real = Pool.keep_snapshot
    patch.setattr(
        Pool, "keep_snapshot", lambda self, sequence, border, number: keep(self, sequence, border, number, real)
    )


def _forgetful_digest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pages, "digest_of", lambda _before, ids: digest_of(b"", ids))


FAULTS = [
    (_forget_reference, "window"),
    (_skip_copy, "full"),
    (_early_window, "window"),
    (_wrong_border, "hybrid"),
    (_forgetful_digest, "full"),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS)
def test_the_law_finds_a_seeded_fault(
    fault: Callable[[pytest.MonkeyPatch], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        lives(kind, range(40))


def test_same_ids_of_another_digest_are_no_hit() -> None:
    entry = Entry(b"x", [1, 2, 3, 4], [0])
    pool = Pool(SHAPES["full"], 60)
    pool.entries[digest_of(b"", [5, 6, 7, 8])] = entry  # as if two digests were one
    assert pool._match(Sequence(Ask(key=0, ids=[5, 6, 7, 8, 9], room=1, root=b""), 1)) == []
