"""Who runs in the next step, with how many tokens, on which pages. No torch, no model, no clock: the time is handed in.

    1  every output that has a token to read gets it, and its drafts: decoding never waits for prompts
    2  what is left of the step's tokens goes to prompts that are being read, in order
    3  then to requests that wait: by priority (waiting raises it), then the tenant that was served least, then arrival

Who cannot get a page takes it from what nobody uses (prefix cache), then from the last in order of those that run, who
waits again and is read anew later. The first in order can take from all others and fits alone (`add` sees to that), so
something always moves. `next` makes a plan, `commit` says that it was carried out, `abort` that it was not.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from math import inf

from openbook.errors import InputError
from openbook.generate.audit import audit
from openbook.generate.pages import Pool
from openbook.generate.plan import Ask, Plan, Sequence, Shape, Work
from openbook.generate.plan import Full as Full

AGING = 30.0  # seconds of waiting that are worth one step of priority
RECENT = 32  # ends that the rate is measured over


class Scheduler:
    """The queues of one engine.

    rows, tokens            sequences and tokens of a step at most
    waiting, waiting_tokens requests and prompt tokens that wait at most
    """

    def __init__(
        self,
        shape: Shape,
        memory: int,
        *,
        rows: int = 64,
        tokens: int = 512,
        waiting: int = 1024,
        waiting_tokens: int = 1 << 20,
        prefix_cache: bool = True,
        ttl: float | None = None,
        minimum: int = 0,
    ) -> None:
        if rows < 1 or tokens < 1:
            raise InputError(f"`rows` and `tokens` of a step must be at least 1: got rows={rows}, tokens={tokens}.")
        self.shape = shape
        self.rows, self.tokens = rows, tokens
        self.waiting_limit, self.waiting_tokens_limit = waiting, waiting_tokens
        self.pool = Pool(shape, memory, prefix_cache=prefix_cache, ttl=ttl, minimum=minimum)
        self.running: list[Sequence] = []  # in order
        self.queues: dict[tuple[int, str], deque[Sequence]] = {}  # waiting, by priority and tenant
        self.served: dict[str, float] = {}  # tokens of each tenant, as if all had begun together
        self.waiting = self.waiting_tokens = 0
        self.preemptions = 0
        self.now = 0.0
        self._deadline = inf  # none is earlier
        self._turn = 0  # where the next step begins when more run than fit into one
        self._lost: list[Sequence] = []  # whose state went with an aborted step
        self._ends: deque[float] = deque(maxlen=RECENT)
        self.underway: Plan | None = None

    # -- requests -----------------------------------------------------------------------------------------------------

    def add(self, ask: Ask, now: float) -> Sequence:
        """Takes a request. `Full` when too many wait, `InputError` when it could never run."""
        most = len(ask.ids) + ask.room
        need = self.pool.cost(most, ask.source, self.shape.page)
        if need > self.pool.memory:
            raise InputError(
                f"This request needs {need:,} bytes of the engine's memory ({most} tokens of prompt and output) and "
                f"there are {self.pool.memory:,}. Give the engine more `memory`, or ask for fewer tokens."
            )
        crowded = self.waiting > 0 and self.waiting_tokens + len(ask.ids) > self.waiting_tokens_limit
        if crowded or self.waiting >= self.waiting_limit:
            raise Full(
                f"{self.waiting} requests with {self.waiting_tokens} prompt tokens wait already "
                f"(at most {self.waiting_limit} and {self.waiting_tokens_limit}). Try again later.",
                self._retry_after(),
            )
        sequence = Sequence(ask, len(self.shape.groups))
        self._enqueue(sequence, first=False)
        if ask.deadline is not None:
            self._deadline = min(self._deadline, ask.deadline)
        self.now = now
        return sequence

    def _retry_after(self) -> float:
        if len(self._ends) < 2 or self._ends[-1] <= self._ends[0]:
            return 1.0
        return min(60.0, max(1.0, (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)))

    def _enqueue(self, sequence: Sequence, *, first: bool) -> None:
        tenant = sequence.ask.tenant
        queue = self.queues.setdefault((sequence.ask.priority, tenant), deque())
        if first:
            place = next((i for i, other in enumerate(queue) if other.order > sequence.order), len(queue))
            queue.insert(place, sequence)
        else:
            queue.append(sequence)
        if tenant not in self.served:  # who was away has saved nothing up
            self.served[tenant] = min(self.served.values(), default=0.0)
        sequence.state = "waiting"
        self.waiting += 1
        self.waiting_tokens += len(sequence.ask.ids)

    def _dequeue(self, sequence: Sequence) -> None:
        key = (sequence.ask.priority, sequence.ask.tenant)
        queue = self.queues[key]
        queue.remove(sequence)
        if not queue:
            del self.queues[key]
        self.waiting -= 1
        self.waiting_tokens -= len(sequence.ask.ids)

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence, wherever it stands, and gives back all it has. Once more does nothing."""
        if sequence.state == "done":
            return
        self._dequeue(sequence) if sequence.state == "waiting" else self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.state = "done"
        sequence.drafts = []
        self._ends.append(self.now)
        tenant = sequence.ask.tenant
        if not any(key[1] == tenant for key in self.queues) and not any(s.ask.tenant == tenant for s in self.running):
            self.served.pop(tenant, None)

    cancel = finish

    def fork(self, parent: Sequence, choice: int) -> Sequence:
        """A sequence that goes on from where `parent` is, sharing its pages; without a slot for it, it waits."""
        child = Sequence(parent.ask, len(self.shape.groups), choice)
        child.ids = list(parent.ids)
        child.paused = parent.paused
        if parent.state == "running" and self.pool.fork(parent, child):
            child.state = "running"
            insort(self.running, child, key=_order)
        else:
            self._enqueue(child, first=True)
        return child

    def pause(self, sequence: Sequence) -> None:
        """Gives a sequence no step until `resume`: it waits for others."""
        sequence.paused = True

    def resume(self, sequence: Sequence) -> None:
        """Lets it go on."""
        sequence.paused = False

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.queues

    # -- a step -------------------------------------------------------------------------------------------------------

    def next(self, now: float) -> Plan:
        """The next step. Until it is committed or aborted there is no other."""
        assert self.underway is None, "a plan is under way"
        self.now = now
        self.pool.expire(now)
        plan = Plan()
        if now >= self._deadline:
            self._expire(plan, now)
        left = self._decode(plan)
        if left and len(plan.works) < len(self.running):
            left = self._read_on(plan, left)
        if self.queues:
            if left and len(plan.works) < self.rows:
                self._admit(plan, left, now)
            if not (plan.works or plan.ended or plan.preempted):
                self._unlock(plan, now)
            if not (plan.works or plan.ended or plan.preempted):
                self._unstick(plan, now)
        if self._lost:
            plan.preempted += self._lost
            self._lost = []
        if plan.works:  # else they are for the next
            pool = self.pool
            plan.copies, pool.copies = pool.copies, []
            plan.slot_copies, pool.slot_copies = pool.slot_copies, []
            self.underway = plan
        return plan

    def _expire(self, plan: Plan, now: float) -> None:
        self._deadline = inf
        for sequence in [*self.running, *(sequence for queue in self.queues.values() for sequence in queue)]:
            deadline = sequence.ask.deadline
            if deadline is None:
                continue
            if deadline <= now:
                plan.ended.append((sequence, "deadline"))
                self.finish(sequence)
            else:
                self._deadline = min(self._deadline, deadline)

    def _decode(self, plan: Plan) -> int:
        """One token, and drafts, for every sequence that has one to read; what is left of the step's tokens."""
        order, most = self.running, min(self.rows, self.tokens)
        ready = [s for s in order if s.computed == len(s.ids) - 1 and not s.paused]
        if len(ready) > most:  # everyone in turn
            self._turn %= len(ready)
            ready = ready[self._turn :] + ready[: self._turn]
            self._turn += most
        left, works, grow = self.tokens, plan.works, self.pool.grow
        extra = left - len(ready)  # drafts do not take the token of another
        for sequence in ready:
            if len(works) == most:
                break
            if sequence.state != "running":  # preempted by one before it
                continue
            end, count = len(sequence.ids), 1
            if sequence.drafts:
                drafts = sequence.drafts = sequence.drafts[: max(0, extra)]
                if drafts and not grow(sequence, end + len(drafts)):
                    drafts = sequence.drafts = []  # they are not worth taking pages from somebody
                count += len(drafts)
                extra -= len(drafts)
            if end > sequence.ready and not grow(sequence, end) and not self._grow(plan, sequence, end):
                continue
            works.append(Work(sequence, sequence.computed, count, True))
            left -= count
        return left

    def _read_on(self, plan: Plan, left: int) -> int:
        """Chunks for prompts that are being read."""
        for sequence in list(self.running):
            if not left or len(plan.works) == self.rows:
                break
            if sequence.state == "running" and not sequence.paused and sequence.computed < len(sequence.ids) - 1:
                left -= self._chunk(plan, sequence, left, taking=True)
        return left

    def _chunk(self, plan: Plan, sequence: Sequence, left: int, *, taking: bool) -> int:
        """A chunk of a prompt of at most `left` tokens, or of what there are pages for; its size."""
        start, total = sequence.computed, len(sequence.ids)
        sequence.drafts = []
        end = min(total, start + left)
        border = (total - 1) // self.shape.page * self.shape.page
        if self.shape.slot_bytes and start < border < end:
            end = border
        while not self.pool.grow(sequence, end):
            if end - start > self.shape.page:
                end = start + (end - start) // 2
            elif not taking or not self._grow(plan, sequence, end):
                return 0
        if self.shape.slot_bytes and end == border and sequence.ask.keep and self.pool.prefix_cache:
            number = self.pool.snapshot()
            if number >= 0:
                plan.saves.append((sequence.slot, number))
                plan.snapshots.append((sequence, border, number))
        plan.works.append(Work(sequence, start, end - start, end == total))
        return end - start

    def _grow(self, plan: Plan, sequence: Sequence, end: int) -> bool:
        """Pages for a sequence, if need be those of others that run; False: it is the last in order and waits again."""
        while not self.pool.grow(sequence, end):
            planned = {work.sequence for work in plan.works}
            victim = next((s for s in reversed(self.running) if s not in planned), sequence)
            if victim is sequence and len(self.running) == 1 and not plan.works:
                plan.ended.append((sequence, "memory"))
                self.finish(sequence)
                return False
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, plan: Plan, sequence: Sequence) -> None:
        self._back(sequence)
        plan.preempted.append(sequence)
        self.preemptions += 1

    def _back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.drafts = []
        self._enqueue(sequence, first=True)

    def _admit(self, plan: Plan, left: int, now: float) -> None:
        preempted = set(plan.preempted)
        while left and len(plan.works) < self.rows and sum(not s.paused for s in self.running) < self.rows:
            sequence = self._candidate(now)
            if sequence is None or sequence in preempted or not self.pool.begin(sequence):
                return
            taken = self._chunk(plan, sequence, left, taking=False) if self._fits(plan, sequence) else 0
            if not taken:
                self.pool.release(sequence)
                return
            self._dequeue(sequence)
            sequence.state = "running"
            if not sequence.started:
                sequence.cached, sequence.started = sequence.computed, True
                self.pool.hits += sequence.cached
                plan.begun.append(sequence)
            insort(self.running, sequence, key=_order)
            left -= taken

    def _fits(self, plan: Plan, sequence: Sequence) -> bool:
        """Whether it can be read to its end beside those that run: two that were read by half would only take turns."""
        if not self.running:
            return True
        pool = self.pool
        need = pool.missing(sequence) + len(plan.works) * sum(group.nbytes for group in self.shape.groups)
        need += sum(pool.missing(s) for s in self.running if s.computed < len(s.ids) - 1)
        return pool.bytes - pool.loose + need <= pool.memory

    def _unlock(self, plan: Plan, now: float) -> None:
        """Who is paused waits for others that may wait for its pages: if nothing else moves, it gives them up."""
        while not plan.works and (paused := [s for s in self.running if s.paused]):
            self._preempt(plan, paused[-1])
            self._admit(plan, self.tokens, now)

    def _unstick(self, plan: Plan, now: float) -> None:
        """Nothing moves. Who waits for a mate that cannot get in beside it would wait forever: the mate has to end."""
        if any(s.computed < len(s.ids) for s in self.running):  # paused: somebody resumes it
            return
        asks = {s.ask.key for s in self.running}
        waiting = [s for queue in self.queues.values() for s in queue if not s.paused]
        mate = next((s for s in waiting if s.ask.key in asks), None if self.running else self._candidate(now))
        if mate is not None:
            plan.ended.append((mate, "memory"))
            self.finish(mate)

    def _candidate(self, now: float) -> Sequence | None:
        """Who comes next of those that wait."""
        best: tuple[tuple[float, float, float, tuple[int, float, int, int]], Sequence] | None = None
        for (priority, tenant), queue in self.queues.items():
            head = next((sequence for sequence in queue if not sequence.paused), None)
            if head is None:
                continue
            aged = priority + int((now - head.ask.arrived) / AGING)
            mine = (0.0 if head.started else 1.0, -aged, self.served[tenant], head.order)
            if best is None or mine < best[0]:
                best = mine, head
        return best[1] if best else None

    def commit(self, plan: Plan, accepted: Mapping[Sequence, int] | None = None) -> None:
        """The step was carried out. `accepted`: tokens that hold, where not all that were read do (drafts)."""
        assert plan is self.underway, "the plan that is under way"
        self.underway = None
        pool, served = self.pool, self.served
        for work in plan.works:
            sequence, count = work.sequence, work.count
            if sequence.state != "running":
                continue
            computed = work.start + count
            if accepted and sequence in accepted:
                computed = accepted[sequence]
            if sequence.drafts:
                sequence.drafts = []
            if computed < sequence.event:
                sequence.computed = computed
            else:
                pool.settle(sequence, computed)
            served[sequence.ask.tenant] += count
        for sequence, border, number in plan.snapshots:
            if sequence.state == "running" and sequence.computed >= border:
                pool.keep_snapshot(sequence, border, number)
            else:
                pool.drop_snapshot(number)

    def abort(self, plan: Plan) -> None:
        """The step was not carried out, or not to its end: nothing it wrote counts.

        What it may have half written and cannot write again, copies and recurrent states, goes with it: those sequences
        are read anew, and the next plan names them among its preempted.
        """
        assert plan is self.underway, "the plan that is under way"
        self.underway = None
        for _, _, number in plan.snapshots:
            self.pool.drop_snapshot(number)
        pages = {(group, target) for group, _, target in plan.copies}
        slots = {target for _, target in plan.slot_copies} | {work.sequence.slot for work in plan.works} - {-1}
        for sequence in list(self.running):
            sequence.drafts = []
            copied = pages and any((g, page) in pages for g, table in enumerate(sequence.tables) for page in table)
            if copied or sequence.slot in slots:
                self._back(sequence)
                self._lost.append(sequence)

    def check(self) -> None:
        """Asserts that everything is accounted for."""
        waiting = [sequence for queue in self.queues.values() for sequence in queue]
        snapshots = [number for _, _, number in self.underway.snapshots] if self.underway else []
        assert all(s.state == "waiting" and not any(s.tables) and s.slot < 0 for s in waiting), "who waits has nothing"
        assert all(s.state == "running" for s in self.running)
        assert [s.order for s in self.running] == sorted(s.order for s in self.running)
        assert self.waiting == len(waiting)
        assert self.waiting_tokens == sum(len(s.ask.ids) for s in waiting)
        audit(self.pool, self.running, snapshots)


def _order(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.order
