"""A model that keeps what it should see, to hold the scheduler against: a key is all tokens up to it, a state likewise.

`World` drives a scheduler as the engine does, one event at a time, and asserts after each that everything is accounted
for; its `Pretend` asserts that every token a work attends to is in the pages that its tables name.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from contextlib import suppress

from openbook.generate.plan import Ask, Group, Plan, Sequence, Shape, Work
from openbook.generate.scheduler import Full, Scheduler

FULL, NEAR = Group(name="full", window=None, nbytes=3), Group(name="near", window=6, nbytes=2)
SHAPES = {
    "full": Shape(page=4, groups=(FULL,)),
    "window": Shape(page=4, groups=(FULL, NEAR)),
    "near": Shape(page=4, groups=(NEAR,)),
    "slots": Shape(page=4, groups=(), slot_bytes=5),
    "hybrid": Shape(page=4, groups=(FULL, NEAR), slot_bytes=5),
    "source": Shape(page=4, groups=(FULL,), source=Group(name="source", window=None, nbytes=2)),
}
LONGEST, ROOM = 16, 8  # of prompts and outputs
State = tuple[Hashable, ...]


def tight(shape: Shape) -> int:
    """Memory for the longest request and nothing else; 8 pages of a full group."""
    total = LONGEST + ROOM
    pages = [-(-(total if g.window is None else min(total, g.window + 8)) // 4) * g.nbytes for g in shape.groups]
    source = 2 * shape.source.nbytes if shape.source else 0
    return sum(pages) + 2 * sum(g.nbytes for g in shape.groups) + shape.slot_bytes + source


class Pretend:
    """The pages and slots of all sequences."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pages: dict[tuple[int, int], list[State]] = {}
        self.slots: dict[int, State] = {}
        self.sources: dict[int, Hashable] = {}

    def copy(self, plan: Plan, most: int = 1 << 30) -> None:
        """Before a step; `most`: copies that are made before something breaks."""
        for group, source, target in plan.copies[:most]:
            self.pages[group, target] = list(self._page(group, source))
        for source, target in plan.slot_copies[:most]:
            self.slots[target] = self.slots[source] if source >= 0 else ()

    def _page(self, group: int, number: int) -> list[State]:
        return self.pages.setdefault((group, number), [("never",)] * self.shape.page)

    def write(self, works: list[Work], *, broken: bool = False) -> None:
        """Keys of all works, then what they see. `broken`: keys that are no good, as of a step that raises."""
        page = self.shape.page
        for work in works:
            sequence = work.sequence
            ids = read(work)
            for at in range(work.start, work.start + work.count):
                for group, table in enumerate(sequence.tables):
                    key: State = ("broken",) if broken else (sequence.ask.root, *ids[: at + 1])
                    assert table[at // page] >= 0, "a page for every token"
                    self._page(group, table[at // page])[at % page] = key
            for number in sequence.source_table:
                self.sources[number] = sequence.ask.key
        if not broken:
            for work in works:
                self._see(work)

    def _see(self, work: Work) -> None:
        sequence, page, ids = work.sequence, self.shape.page, read(work)
        for group, of in enumerate(self.shape.groups):
            first = 0 if of.window is None else max(0, work.start - of.window + 1)
            for at in range(first, work.start + work.count):
                number = sequence.tables[group][at // page]
                assert number >= 0, f"{of.name}: token {at} was given back"
                found = self._page(group, number)[at % page]
                assert found == (sequence.ask.root, *ids[: at + 1]), f"{of.name}: token {at} of {sequence}: {found}"
        for number in sequence.source_table:
            assert self.sources[number] == sequence.ask.key, "source"
        if self.shape.slot_bytes:
            before = self.slots[sequence.slot]
            expected = (sequence.ask.root, *ids[: work.start]) if work.start else ()
            assert before == expected, f"state of {sequence}: {before}"

    def settle(self, plan: Plan, back: set[Sequence]) -> None:
        """States after a step, but of those that stay; then the snapshots."""
        if self.shape.slot_bytes:
            for work in plan.works:
                if work.sequence not in back:
                    self.slots[work.sequence.slot] = (
                        work.sequence.ask.root,
                        *read(work)[: work.start + work.count],
                    )
            for source, target in plan.saves:
                self.slots[target] = self.slots[source]


def read(work: Work) -> list[int]:
    """All ids up to the end of a work."""
    return (work.sequence.ids + work.sequence.drafts)[: work.start + work.count]


class World:
    """A scheduler, its pretended model, and those who ask."""

    def __init__(self, shape: Shape, seed: int, memory: int, ttl: float | None = None, minimum: int = 0) -> None:
        self.chance = random.Random(seed)
        self.shape = shape
        self.scheduler = Scheduler(
            shape, memory, rows=4, tokens=8, waiting=12, waiting_tokens=90, ttl=ttl, minimum=minimum
        )
        self.model = Pretend(shape)
        self.now, self.key = 0.0, 0
        self.live: dict[Sequence, int] = {}  # and how long they get
        self.ends: dict[Sequence, int] = {}
        self.forks = 0

    def arrive(self) -> None:
        """One more request, likely one that begins like others."""
        chance = self.chance
        self.key += 1
        ids = [0] * chance.choice([0, 4, 8]) + [chance.randrange(3) for _ in range(chance.randint(1, 8))]
        ask = Ask(
            key=self.key,
            ids=ids,
            room=chance.randint(1, ROOM),
            root=chance.choice([b"a", b"b"]),
            arrived=self.now,
            tenant=chance.choice("xy"),
            priority=chance.randrange(2),
            source=5 if self.shape.source else 0,
            share=chance.random() < 0.9,
            keep=chance.random() < 0.9,
            deadline=self.now + 20 if chance.random() < 0.2 else None,
        )
        with suppress(Full):
            self.live[self.scheduler.add(ask, self.now)] = len(ids) + ask.room
        self.scheduler.check()

    def end(self, sequence: Sequence) -> None:
        """Notes an end."""
        self.ends[sequence] = self.ends.get(sequence, 0) + 1
        del self.live[sequence]

    def cancel(self) -> None:
        """Someone does not want to wait."""
        if self.live:
            sequence = self.chance.choice(list(self.live))
            self.scheduler.cancel(sequence)
            self.scheduler.cancel(sequence)  # once more does nothing
            self.end(sequence)
            self.scheduler.check()

    def hold(self) -> None:
        """Pauses one, or lets it go on."""
        if self.live:
            sequence = self.chance.choice(list(self.live))
            (self.scheduler.resume if sequence.paused else self.scheduler.pause)(sequence)

    def step(self, *, broken: bool = False, quiet: bool = False) -> None:
        """One step of the engine; `broken`: it raises somewhere."""
        chance, scheduler = self.chance, self.scheduler
        self.now += chance.random()
        for sequence, total in self.live.items():
            ready = sequence.state == "running" and sequence.computed == len(sequence.ids) - 1
            if ready and chance.random() < 0.5:
                sequence.drafts = [7] * min(3, total - len(sequence.ids) - 1)
        plan = scheduler.next(self.now)
        scheduler.check()
        for sequence, why in plan.ended:
            assert why == "deadline", "what `add` took fits alone"
            self.end(sequence)
        if not plan.works:
            return
        assert len(plan.works) <= 4
        assert sum(work.count for work in plan.works) <= 8
        assert len({work.sequence for work in plan.works}) == len(plan.works)
        if broken:
            self._break(plan)
        else:
            self._carry_out(plan, quiet)
        scheduler.check()

    def _break(self, plan: Plan) -> None:
        point = self.chance.randrange(4)
        self.model.copy(plan, 1 if point == 0 else 1 << 30)
        if point > 0:
            self.model.write(plan.works, broken=True)
        if point > 1:
            for work in plan.works:
                if self.shape.slot_bytes:
                    self.model.slots[work.sequence.slot] = ("broken",)
        self.scheduler.abort(plan)

    def _carry_out(self, plan: Plan, quiet: bool) -> None:
        chance, scheduler = self.chance, self.scheduler
        self.model.copy(plan)
        self.model.write(plan.works)
        accepted: dict[Sequence, int] = {}
        outputs: dict[Sequence, list[int]] = {}
        back: set[Sequence] = set()
        for work in plan.works:
            sequence, drafts = work.sequence, work.sequence.drafts
            if not work.final:
                assert not drafts
                continue
            right = chance.randint(0, len(drafts))
            outputs[sequence] = [*drafts[:right], chance.randrange(8, 11)]
            if right < len(drafts):
                accepted[sequence] = work.start + (0 if sequence.slot >= 0 else 1 + right)
                back |= {sequence} if sequence.slot >= 0 else set()
        if not quiet and chance.random() < 0.05:  # a row that failed: nothing of it counts
            failed = chance.choice(plan.works)
            accepted[failed.sequence] = failed.start
            back.add(failed.sequence)
        self.model.settle(plan, back)
        for sequence, ids in outputs.items():
            sequence.ids += ids
        if not quiet and chance.random() < 0.1:  # while the plan is under way
            sequence = chance.choice(plan.works).sequence
            scheduler.finish(sequence)
            self.end(sequence)
            scheduler.check()
        scheduler.commit(plan, accepted)
        scheduler.check()
        for work in plan.works:
            sequence = work.sequence
            if work.final and sequence in self.live and not quiet and len(self.live) < 8 and chance.random() < 0.2:
                self.forks += 1
                child = scheduler.fork(sequence, self.forks)
                child.ids[-1] = 11
                self.live[child] = self.live[sequence]
        scheduler.check()
        for sequence in list(self.live):
            if len(sequence.ids) >= self.live[sequence]:
                scheduler.finish(sequence)
                self.end(sequence)

    def close(self) -> None:
        """Nobody comes any more: everyone ends, once, and everything is given back."""
        for sequence in self.live:
            sequence.paused = False
        for _ in range(2000):
            if not self.live:
                break
            self.step(quiet=True)
        assert not self.live, "someone waits forever"
        assert set(self.ends.values()) <= {1}
        assert self.scheduler.idle
        pool = self.scheduler.pool
        pool.forget_all()
        assert pool.bytes == pool.loose == 0
        assert not pool.entries
        assert not self.scheduler.served


def drive(shape: Shape, seed: int, *, memory: int, rounds: int = 100, ttl: float | None = None) -> World:
    """A life of a scheduler, by chance."""
    world = World(shape, seed, memory, ttl, minimum=seed % 3 * 4)
    for _ in range(rounds):
        if world.chance.random() < 0.5:
            world.arrive()
        if world.chance.random() < 0.05:
            world.cancel()
        if world.chance.random() < 0.05:
            world.hold()
        world.step(broken=world.chance.random() < 0.05)
    world.close()
    return world
