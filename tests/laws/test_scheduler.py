"""What the scheduler promises, by a clock that is moved by hand and no model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from openbook.errors import InputError
from openbook.generate.plan import Ask, Group, Plan, Sequence, Shape
from openbook.generate.scheduler import AGING, Full, Scheduler

FULL, NEAR = Group(name="full", window=None, nbytes=1), Group(name="near", window=6, nbytes=1)
PLAIN = Shape(page=4, groups=(FULL,))
WINDOW = Shape(page=4, groups=(FULL, NEAR))
SLOTS = Shape(page=4, groups=(FULL,), slot_bytes=2)


def ask(key: int, length: int = 4, room: int = 50, **more: object) -> Ask:
    made = Ask(key=key, ids=[100 + key] * length, room=room, root=b"")
    for name, value in more.items():
        setattr(made, name, value)
    return made


def step(scheduler: Scheduler, now: float = 0.0) -> Plan:
    plan = scheduler.next(now)
    for work in plan.works:
        if work.final:
            work.sequence.ids.append(1)
    if plan.works:
        scheduler.commit(plan)
    scheduler.check()
    return plan


def ran(plan: Plan) -> list[int]:
    return [work.sequence.ask.key for work in plan.works]


def end(scheduler: Scheduler, plan: Plan) -> None:
    for work in plan.works:
        scheduler.finish(work.sequence)


# -- steps ------------------------------------------------------------------------------------------------------------


def test_decoding_never_waits_for_a_prompt() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=4, tokens=8)
    scheduler.add(ask(1), 0.0)
    step(scheduler)
    scheduler.add(ask(2, 400), 0.0)
    for _ in range(40):
        plan = step(scheduler)
        assert ran(plan) == [1, 2]
        assert sum(work.count for work in plan.works) == 8


def test_nor_for_the_drafts_of_another() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=4, tokens=8)
    made = [scheduler.add(ask(key, 1), 0.0) for key in range(4)]
    step(scheduler)
    made[0].drafts = [5] * 7
    plan = scheduler.next(0.0)
    assert [work.count for work in plan.works] == [5, 1, 1, 1]
    assert plan.works[0].tokens == [1, 5, 5, 5, 5]
    scheduler.commit(plan, {made[0]: plan.works[0].start + 1})
    assert made[0].computed == 2


@pytest.mark.parametrize(("rows", "tokens"), [(2, 8), (8, 2)])
def test_more_than_fit_into_a_step_take_turns(rows: int, tokens: int) -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=rows, tokens=tokens)
    first = scheduler.add(ask(0, 2), 0.0)
    step(scheduler)
    everyone = [first, *(scheduler.fork(first, choice) for choice in range(1, 5))]
    for _ in range(20):
        assert len(step(scheduler).works) == 2
    lengths = [len(sequence.ids) for sequence in everyone]
    assert max(lengths) - min(lengths) <= 1


def test_a_prompt_is_let_in_only_where_it_can_be_read_to_its_end() -> None:
    scheduler = Scheduler(PLAIN, 12, rows=4, tokens=8)
    scheduler.add(ask(1, 32, 4), 0.0)
    scheduler.add(ask(2, 32, 4), 0.0)
    plans = [step(scheduler) for _ in range(4)]
    assert [ran(plan) for plan in plans] == [[1], [1], [1], [1]]
    assert scheduler.preemptions == 0


def test_paused_ones_get_no_step_until_they_are_resumed() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=4, tokens=8)
    one, two = scheduler.add(ask(1), 0.0), scheduler.add(ask(2), 0.0)
    scheduler.pause(two)
    assert [ran(step(scheduler)) for _ in range(2)] == [[1], [1]]
    scheduler.resume(two)
    assert ran(step(scheduler)) == [1, 2]
    scheduler.pause(one)
    assert ran(step(scheduler)) == [2]


# -- who comes first --------------------------------------------------------------------------------------------------


def test_tenants_get_equal_shares() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=1, tokens=8)
    for key in range(20):
        scheduler.add(ask(key, tenant="a" if key < 18 else "b"), 0.0)
    first: list[str] = []
    for now in range(4):
        plan = step(scheduler, now / 100)
        first += [work.sequence.ask.tenant for work in plan.works]
        end(scheduler, plan)
    assert sorted(first) == ["a", "a", "b", "b"]


def test_who_was_away_has_saved_nothing_up() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=1, tokens=8)
    for key in range(10):
        scheduler.add(ask(key, tenant="a"), 0.0)
    for _ in range(4):
        end(scheduler, step(scheduler))
    for key in range(10, 20):
        scheduler.add(ask(key, tenant="b"), 0.0)
    order = []
    for _ in range(6):
        plan = step(scheduler)
        order += [work.sequence.ask.tenant for work in plan.works]
        end(scheduler, plan)
    assert order.count("a") == 3


def test_priority_goes_first_and_nobody_starves() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=1, tokens=8)
    scheduler.add(ask(0), 0.0)
    seen: list[int] = []
    for turn in range(1, 12):
        now = turn * AGING / 4
        scheduler.add(ask(turn, priority=1, arrived=now), now)
        plan = step(scheduler, now)
        seen += ran(plan)
        end(scheduler, plan)
    assert seen[0] == 1
    assert 0 in seen


def test_deadlines_end_waiting_and_running() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=1, tokens=8)
    for key in (1, 2, 3):
        scheduler.add(ask(key, deadline=5.0 if key < 3 else 9.0), 0.0)
    assert ran(step(scheduler, 1.0)) == [1]
    plan = step(scheduler, 5.0)
    assert [(s.ask.key, why) for s, why in plan.ended] == [(1, "deadline"), (2, "deadline")]
    assert ran(plan) == [3]
    assert [s.ask.key for s, _ in step(scheduler, 9.0).ended] == [3]
    assert scheduler.idle


def test_the_queue_is_bounded_by_count_and_tokens() -> None:
    scheduler = Scheduler(PLAIN, 100, rows=1, tokens=8, waiting=2, waiting_tokens=20)
    scheduler.add(ask(1, 16), 0.0)
    with pytest.raises(Full, match="at most 2 and 20") as full:
        scheduler.add(ask(2, 5), 0.0)
    assert full.value.retry_after > 0
    scheduler.add(ask(3, 4), 0.0)
    with pytest.raises(Full):
        scheduler.add(ask(4, 0), 0.0)
    step(scheduler)
    scheduler.add(ask(5, 2), 0.0)


def test_a_prompt_longer_than_the_queue_waits_alone() -> None:
    scheduler = Scheduler(PLAIN, 100, rows=1, tokens=8, waiting_tokens=20)
    scheduler.add(ask(1, 40), 0.0)
    with pytest.raises(Full):
        scheduler.add(ask(2, 1), 0.0)


def test_retry_after_follows_the_ends() -> None:
    scheduler = Scheduler(PLAIN, 100, rows=1, tokens=8, waiting=1)
    for turn in range(6):
        scheduler.add(ask(turn), turn * 4.0)
        end(scheduler, step(scheduler, turn * 4.0))
    scheduler.add(ask(6), 24.0)
    with pytest.raises(Full) as full:
        scheduler.add(ask(7), 24.0)
    assert full.value.retry_after == 4.0


def test_what_never_fits_is_refused_with_numbers() -> None:
    scheduler = Scheduler(PLAIN, 8, rows=1, tokens=8)
    scheduler.add(ask(1, 28, 4), 0.0)
    with pytest.raises(InputError, match=r"needs 9 bytes .*33 tokens.* there are 8"):
        scheduler.add(ask(2, 28, 5), 0.0)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_last_is_preempted_and_comes_back() -> None:
    scheduler = Scheduler(PLAIN, 6, rows=4, tokens=8)
    made: list[Sequence] = [scheduler.add(ask(key, 4, room=12, arrived=float(key)), 0.0) for key in (1, 2)]
    gone: list[int] = []
    for now in range(60):
        gone += [s.ask.key for s in step(scheduler, float(now)).preempted]
        for sequence in made:
            if sequence.state != "done" and len(sequence.ids) >= 16:
                scheduler.finish(sequence)
    assert set(gone) == {2}
    assert [len(s.ids) for s in made] == [16, 16]
    assert scheduler.idle


def test_priority_is_preempted_last() -> None:
    scheduler = Scheduler(PLAIN, 6, rows=4, tokens=8)
    made = [scheduler.add(ask(key, 4, room=12, priority=key), 0.0) for key in (1, 2)]
    while made[1].state != "done":
        assert made[1] not in step(scheduler).preempted
        if len(made[1].ids) >= 16:
            scheduler.finish(made[1])
    assert scheduler.preemptions > 0


def test_a_mate_that_can_never_come_ends_instead_of_waiting_for_ever() -> None:
    scheduler = Scheduler(PLAIN, 5, rows=4, tokens=8)
    first = scheduler.add(ask(1, 8, room=12), 0.0)
    step(scheduler)
    mate = scheduler.fork(first, 1)
    ended: list[tuple[Sequence, str]] = []
    for _ in range(30):  # beams: each waits until the other has read its token
        plan = scheduler.next(0.0)
        ended += plan.ended
        if plan.works:
            scheduler.commit(plan)
        if first.computed == len(first.ids) and mate.state == "running" and mate.computed == len(mate.ids):
            first.ids.append(1)
            mate.ids.append(2)
        scheduler.check()
        if ended:
            break
    assert ended == [(mate, "memory")]


def prefix(shape: Shape, memory: int = 1000, **more: float) -> Callable[..., int]:
    """Runs a prompt to its end; the tokens of it that were there."""
    scheduler = Scheduler(shape, memory, rows=4, tokens=64, ttl=more.get("ttl"), minimum=int(more.get("minimum", 0)))

    def cached(ids: list[int], root: bytes = b"a", now: float = 0.0, *, share: bool = True, keep: bool = True) -> int:
        sequence = scheduler.add(Ask(key=0, ids=ids, room=2, root=root, share=share, keep=keep), now)
        while not step(scheduler, now).works[0].final:
            pass
        scheduler.finish(sequence)
        scheduler.check()
        return sequence.cached

    return cached


@pytest.mark.parametrize("shape", [PLAIN, WINDOW, SLOTS], ids=["full", "window", "slots"])
def test_prefix_hits_are_exact_and_of_one_root(shape: Shape) -> None:
    cached, ids = prefix(shape), list(range(17))
    assert [cached(ids), cached(ids), cached(ids, b"b")] == [0, 16, 0]
    assert cached([*ids[:16], 9, 9]) == 16
    assert cached([9, *ids[1:]]) == 0
    other = [*ids[:5], 99, *ids[6:]]  # without a state at the border before it, keys are no hit
    assert cached(other) == (0 if shape.slot_bytes else 4)
    assert cached(ids[:16]) == (0 if shape.slot_bytes else 12), "one token is left to read"


def test_who_does_not_share_finds_nothing_and_who_does_not_keep_leaves_nothing() -> None:
    cached, ids = prefix(PLAIN), list(range(17))
    assert cached(ids, keep=False) == cached(ids) == 0
    assert cached(ids, share=False) == 0
    assert cached(ids) == 16


def test_time_to_live_and_least_length() -> None:
    cached, ids = prefix(PLAIN, ttl=5.0, minimum=9), list(range(17))
    assert [cached(ids, now=0.0), cached(ids, now=4.0), cached(ids, now=8.0), cached(ids, now=13.0)] == [0, 16, 16, 0]
    assert [cached(ids[9:]), cached(ids[9:])] == [0, 0]


def test_the_longest_unused_is_forgotten_first() -> None:
    cached = prefix(PLAIN, memory=9)
    one, two, three = ([key] * 13 for key in (1, 2, 3))
    assert [cached(one), cached(two), cached(one), cached(three)] == [0, 0, 12, 0]
    assert cached(one) == 12
    assert cached(two) < 12


def test_a_snapshot_is_taken_at_the_last_border_of_a_prompt() -> None:
    scheduler = Scheduler(SLOTS, 100, rows=4, tokens=64)
    sequence = scheduler.add(ask(1, 11), 0.0)
    plan = step(scheduler)
    ((of, border, number),) = plan.snapshots
    assert (of, border, plan.works[0].count) == (sequence, 8, 8)
    assert plan.slot_copies == [(-1, sequence.slot)]
    assert plan.saves == [(sequence.slot, number)]
    other = scheduler.add(ask(1, 11), 0.0)
    assert step(scheduler).slot_copies == [(number, other.slot)]


# -- forks ------------------------------------------------------------------------------------------------------------


def test_forks_share_pages_and_copy_the_one_they_write() -> None:
    scheduler = Scheduler(PLAIN, 1000, rows=4, tokens=64)
    first = scheduler.add(ask(1, 41), 0.0)
    step(scheduler)
    before = scheduler.pool.bytes
    others = [scheduler.fork(first, choice) for choice in (1, 2)]
    assert scheduler.pool.bytes == before
    assert all(sequence.tables == first.tables for sequence in others)
    last = first.tables[0][-1]
    plan = step(scheduler)
    assert scheduler.pool.bytes == before + 2
    assert [(group, source) for group, source, _ in plan.copies] == [(0, last), (0, last)]
    assert {target for *_, target in plan.copies} | {last} == {s.tables[0][-1] for s in (first, *others)}
    for sequence in (first, *others):
        scheduler.finish(sequence)
    scheduler.check()
    scheduler.pool.forget_all()
    assert scheduler.pool.bytes == 0


def test_a_fork_of_a_state_is_copied_before_anything_runs() -> None:
    scheduler = Scheduler(SLOTS, 100, rows=4, tokens=64, prefix_cache=False)
    first = scheduler.add(ask(1, 4), 0.0)
    step(scheduler)
    child = scheduler.fork(first, 1)
    for sequence in (first, child):
        scheduler.pause(sequence)
    assert not scheduler.next(0.0).works, "nothing runs: the copy is for the next plan"
    scheduler.resume(child)
    assert step(scheduler).slot_copies == [(first.slot, child.slot)]


def test_what_an_aborted_step_may_have_half_written_is_read_anew() -> None:
    scheduler = Scheduler(PLAIN, 100, rows=4, tokens=64)
    first = scheduler.add(ask(1, 6), 0.0)
    step(scheduler)
    child = scheduler.fork(first, 1)
    plan = scheduler.next(0.0)
    assert len(plan.copies) == 1
    scheduler.abort(plan)
    scheduler.check()
    again = step(scheduler)
    (lost,) = again.preempted
    assert {work.sequence for work in again.works} == {first, child}
    assert next(work for work in again.works if work.sequence is lost).start <= 4, "from the cache, or from the start"
