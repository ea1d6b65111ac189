"""A stand-in while the real one is built: first come, first served, no sharing."""

from __future__ import annotations

from openbook.errors import OpenbookError
from openbook.generate.plan import Ask, Plan, Sequence, Shape, Work


class Full(OpenbookError):
    pass


class Scheduler:
    def __init__(self, shape: Shape, memory: int, *, rows=64, tokens=512, waiting=0, waiting_tokens=0, prefix_cache=True, ttl=None, minimum=0):
        self.shape, self.rows, self.tokens = shape, rows, tokens
        n = max(1, memory // max(1, sum(g.nbytes for g in shape.groups) + shape.slot_bytes + (shape.source.nbytes if shape.source else 0)))
        self.free = [list(range(n))[::-1] for _ in shape.groups]
        self.free_source = list(range(n))[::-1]
        self.free_slots = list(range(min(n, 4096)))[::-1]
        self.queue: list[Sequence] = []
        self.copies, self.slot_copies = [], []

    def add(self, ask: Ask, now: float) -> Sequence:
        s = Sequence(ask, len(self.shape.groups))
        self.queue.append(s)
        return s

    def next(self, now: float) -> Plan:
        plan = Plan(copies=self.copies, slot_copies=self.slot_copies)
        self.copies, self.slot_copies = [], []
        left = self.tokens
        for s in self.queue:
            todo = min(len(s.ids) - s.computed, left)
            if not todo or len(plan.works) == self.rows:
                continue
            end = s.computed + todo
            if self.shape.slot_bytes and s.slot < 0:
                s.slot = self.free_slots.pop()
                plan.slot_clears.append(s.slot)
            if self.shape.source and not s.source_table:
                s.source_table = [self.free_source.pop() for _ in range(-(-s.ask.source // self.shape.page))]
            for t, f in zip(s.tables, self.free):
                while len(t) * self.shape.page < end:
                    t.append(f.pop())
            s.state = "running"
            plan.works.append(Work(s, s.computed, todo, end == len(s.ids)))
            left -= todo
        return plan

    def commit(self, plan: Plan, accepted=None) -> None:
        for w in plan.works:
            if w.sequence.state == "running":
                w.sequence.computed = (accepted or {}).get(w.sequence, w.start + w.count)

    def finish(self, s: Sequence) -> None:
        if s.state == "done":
            return
        s.state = "done"
        for t, f in zip(s.tables, self.free):
            f += t
        if s.slot >= 0:
            self.free_slots.append(s.slot)
        self.queue.remove(s)

    def fork(self, s: Sequence) -> Sequence:
        c = Sequence(s.ask, len(self.shape.groups))
        c.ids, c.computed, c.source_table = list(s.ids), s.computed, s.source_table
        for g, (t, f) in enumerate(zip(s.tables, self.free)):
            for p in t:
                c.tables[g].append(f.pop())
                self.copies.append((g, p, c.tables[g][-1]))
        if s.slot >= 0:
            c.slot = self.free_slots.pop()
            self.slot_copies.append((s.slot, c.slot))
        self.queue.append(c)
        return c

    def check(self) -> None:
        pass
