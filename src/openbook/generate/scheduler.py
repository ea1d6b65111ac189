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

from openbook.errors import InputError, OpenbookError
from openbook.generate.pages import Pool
from openbook.generate.plan import Ask, Plan, Sequence, Shape, Work

AGING = 30.0  # seconds of waiting that are worth one step of priority
RECENT = 32  # ends that the rate is measured over


class Full(OpenbookError):
    """Too many requests wait. `retry_after`: seconds until there should be room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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
        self._deadlines = 0  # sequences that have one
        self._turn = 0  # where the next step begins when more run than fit into one
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
        if self.waiting >= self.waiting_limit or self.waiting_tokens + len(ask.ids) > self.waiting_tokens_limit:
            raise Full(
                f"{self.waiting} requests with {self.waiting_tokens} prompt tokens wait already "
                f"(at most {self.waiting_limit} and {self.waiting_tokens_limit}). Try again later.",
                self._retry_after(),
            )
        sequence = Sequence(ask, len(self.shape.groups))
        self._enqueue(sequence, first=False)
        self._deadlines += ask.deadline is not None
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
        if queue[0] is sequence:
            queue.popleft()
        else:
            queue.remove(sequence)
        if not queue:
            del self.queues[key]
        self.waiting -= 1
        self.waiting_tokens -= len(sequence.ask.ids)

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence, wherever it stands, and gives back all it has. Once more does nothing."""
        if sequence.state == "done":
            return
        if sequence.state == "waiting":
            self._dequeue(sequence)
        else:
            self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.state = "done"
        sequence.drafts = []
        self._deadlines -= sequence.ask.deadline is not None
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
        self._deadlines += parent.ask.deadline is not None
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
        if self._deadlines:
            self._expire(plan, now)
        left = self._decode(plan)
        left = self._read_on(plan, left)
        if left and len(plan.works) < self.rows and self.queues:
            self._admit(plan, left, now)
            self._unlock(plan, now)
        plan.copies, self.pool.copies = self.pool.copies, []
        plan.slot_copies, self.pool.slot_copies = self.pool.slot_copies, []
        if plan.works:
            self.underway = plan
        return plan

    def _expire(self, plan: Plan, now: float) -> None:
        everyone = [*self.running, *(sequence for queue in self.queues.values() for sequence in queue)]
        for sequence in everyone:
            if sequence.ask.deadline is not None and sequence.ask.deadline <= now:
                plan.ended.append((sequence, "deadline"))
                self.finish(sequence)

    def _decode(self, plan: Plan) -> int:
        """One token, and drafts, for every sequence that has one to read; what is left of the step's tokens."""
        left = self.tokens
        order = self.running
        if len(order) > self.rows:  # everyone in turn
            self._turn %= len(order)
            order = order[self._turn :] + order[: self._turn]
            self._turn += self.rows
        for sequence in list(order):
            if not left or len(plan.works) == self.rows:
                break
            if sequence.state != "running" or sequence.paused or sequence.computed != len(sequence.ids) - 1:
                continue
            drafts = sequence.drafts = sequence.drafts[: left - 1]
            if drafts and not self.pool.grow(sequence, len(sequence.ids) + len(drafts)):
                drafts = sequence.drafts = []  # they are not worth taking pages from somebody
            if not drafts and not self._grow(plan, sequence, len(sequence.ids)):
                continue
            plan.works.append(Work(sequence, sequence.computed, 1 + len(drafts), True))
            left -= 1 + len(drafts)
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
        self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.drafts = []
        self._enqueue(sequence, first=True)
        plan.preempted.append(sequence)
        self.preemptions += 1

    def _admit(self, plan: Plan, left: int, now: float) -> None:
        preempted = set(plan.preempted)
        while left and len(plan.works) < self.rows and len(self.running) < self.rows:
            sequence = self._candidate(now)
            if sequence is None or sequence in preempted or not self.pool.begin(sequence):
                return
            spare = sum(group.nbytes for group in self.shape.groups) if self.running else 0
            taken = self._chunk(plan, sequence, left, taking=False) if self.pool.spare(spare) else 0
            if not taken:
                self._undo(sequence)
                return
            self._dequeue(sequence)
            sequence.state = "running"
            insort(self.running, sequence, key=_order)
            left -= taken

    def _unlock(self, plan: Plan, now: float) -> None:
        """Who is paused waits for others that may wait for its pages: if nothing else moves, it gives them up."""
        while not plan.works and (paused := [s for s in self.running if s.paused]):
            self._preempt(plan, paused[-1])
            self._admit(plan, self.tokens, now)

    def _undo(self, sequence: Sequence) -> None:
        """A sequence that could not begin for want of pages."""
        if sequence.cached and sequence.state == "waiting" and not sequence.ids[len(sequence.ask.ids) :]:
            sequence.started = False
            self.pool.hits -= sequence.cached
            sequence.cached = 0
        self.pool.release(sequence)

    def _candidate(self, now: float) -> Sequence | None:
        """Who comes next of those that wait."""
        best: Sequence | None = None
        rank: tuple[float, float, float, tuple[int, float, int, int]] | None = None
        for (priority, tenant), queue in self.queues.items():
            head = next((sequence for sequence in queue if not sequence.paused), None)
            if head is None:
                continue
            aged = priority + int((now - head.ask.arrived) / AGING)
            mine = (0.0 if head.started else 1.0, -aged, self.served[tenant], head.order)
            if rank is None or mine < rank:
                best, rank = head, mine
        return best

    def commit(self, plan: Plan, accepted: Mapping[Sequence, int] | None = None) -> None:
        """The step was carried out. `accepted`: tokens that hold, where not all that were read do (drafts)."""
        assert plan is self.underway, "the plan that is under way"
        self.underway = None
        pool = self.pool
        for work in plan.works:
            sequence = work.sequence
            if sequence.state != "running":
                continue
            computed = work.start + work.count
            if accepted is not None and sequence in accepted:
                computed = accepted[sequence]
            sequence.drafts = []
            pool.settle(sequence, computed)
            self.served[sequence.ask.tenant] += work.count
        for sequence, border, number in plan.snapshots:
            if sequence.state == "running" and sequence.computed >= border:
                pool.keep_snapshot(sequence, border, number)
            else:
                pool.drop_snapshot(number)

    def abort(self, plan: Plan) -> None:
        """The step was not carried out: nothing it would have written counts."""
        assert plan is self.underway, "the plan that is under way"
        self.underway = None
        for _, _, number in plan.snapshots:
            self.pool.drop_snapshot(number)

    def check(self) -> None:
        """Asserts that everything is accounted for."""
        waiting = [sequence for queue in self.queues.values() for sequence in queue]
        snapshots = [number for _, _, number in self.underway.snapshots] if self.underway else []
        assert all(s.state == "waiting" and not any(s.tables) and s.slot < 0 for s in waiting), "who waits has nothing"
        assert all(s.state == "running" for s in self.running)
        assert [s.order for s in self.running] == sorted(s.order for s in self.running)
        assert self.waiting == len(waiting)
        assert self.waiting_tokens == sum(len(s.ask.ids) for s in waiting)
        self.pool.check(self.running, snapshots)


def _order(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.order
