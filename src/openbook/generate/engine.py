"""The engine: many requests, one model, one step at a time; what a request gets does not depend on the others.

    plan   = scheduler.next(now)           who runs, how many tokens, which pages            scheduler.py, pages.py
    batch  = Packed(store, plan)           one packed row and the tables of its pages        packed.py, store.py
    logits = model(batch)                  only the rows that are wanted
    tokens = choose(logits)                sampling, grammars, drafts                        choose.py
    scheduler.commit(plan, tokens)         pages are filled, windows move, outputs end

Ids and bytes only; `chat/engine.py` puts text around it and `live.py` a thread. A model is served in its serving form
(`nn/serving.py`): activations in fp32, weights plain, packed bf16 or packed int8, operators whose rows do not depend on
each other. Where the native operators are there, the engine is `exact`: tokens and log-probabilities of a request are
the same to the last bit whatever runs beside it, however its prompt is cut, after a prefix hit, after preemption.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate.choose import Chooser
from openbook.generate.feed import SCORED, quiet
from openbook.generate.job import Job, Listener, Reading, root_of
from openbook.generate.memory import memory_for
from openbook.generate.output import Line, TokenBytes, logprobs
from openbook.generate.packed import Biases, Packed, Sources, source_slots
from openbook.generate.plan import Ask, Plan, Work
from openbook.generate.plan import Sequence as Run
from openbook.generate.requests import Finish, Generation, Token, accept
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full, Scheduler
from openbook.generate.store import PAGE, Store
from openbook.generate.turn import Turn
from openbook.nn.model import LanguageModel

KV = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an engine shares one model."""

    memory: int | str | None = None
    """Bytes for keys, values and states ("2GiB"); None: a part of what is free."""
    rows: int = 64
    """Sequences in one step at most."""
    tokens: int = 512
    """Tokens in one step at most: prompts are read in chunks of what the running sequences leave."""
    page: int = PAGE
    """Tokens of a page."""
    kv: str | None = None
    """Keys and values in float32, bfloat16 or int8; None: float32 where the weights are, else bfloat16."""
    context: int | None = None
    """Tokens of prompt and output together; None: the model's own."""
    prefix_cache: bool = True
    """Whether pages of earlier prompts are reused."""
    prefix_ttl: float | None = None
    """Seconds that unused pages are kept; None: until memory is wanted."""
    prefix_minimum: int = 0
    """Shorter prefixes (in tokens) are not kept."""
    waiting: int = 1024
    """Requests that wait at most."""
    waiting_tokens: int = 1 << 20
    """Prompt tokens that wait at most."""


@dataclass
class Stats:
    """What an engine has done; seconds by part of a step."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    failures: int = 0
    schedule: float = 0.0
    pack: float = 0.0
    model: float = 0.0
    choose: float = 0.0
    commit: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class Engine:
    """Runs requests over `model`. One thread at a time: `submit`, `cancel`, `step`.

    token_bytes   the bytes of an id, for stop strings and `Token.text`
    eos, start    ids that end an output; what an encoder-decoder's output begins with
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: Settings | None = None,
        *,
        memory: int | str | None = None,
        eos: Sequence[int] = (),
        start: Sequence[int] = (),
        token_bytes: TokenBytes | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.model = model
        self.eos, self.start = tuple(eos), tuple(start)
        self.token_bytes = token_bytes
        s = self.settings
        self.memory = memory_for(s.memory if memory is None else memory)
        self.store = Store(model, self.memory, self._kv(), s.page)
        self.scheduler = Scheduler(
            self.store.shape,
            self.memory,
            rows=s.rows,
            tokens=s.tokens,
            waiting=s.waiting,
            waiting_tokens=s.waiting_tokens,
            prefix_cache=s.prefix_cache,
            ttl=s.prefix_ttl,
            minimum=s.prefix_minimum,
        )
        self.stats = Stats()
        self.version = 0
        self.jobs: dict[int, Job] = {}
        self._number = 0
        self._biases = Biases()
        self._sourced: dict[Run, list[int]] = {}  # whose source's keys are in these pages
        self._chooser = Chooser(model.spec.embed.vocab, model.device)
        self.clock = time.monotonic

    def _kv(self) -> torch.dtype:
        if self.settings.kv is None:
            return torch.float32 if self.model.dtype == torch.float32 else torch.bfloat16
        if self.settings.kv not in KV:
            raise InputError(f"`kv` must be one of {', '.join(KV)}: got {self.settings.kv!r}.")
        return KV[self.settings.kv]

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        adapter: str | None = None,
        tenant: str = "",
        priority: int = 0,
        timeout: float | None = None,
        listener: Listener | None = None,
    ) -> Job:
        """Takes a request; its tokens come from `step`, and to `listener` if there is one.

        Raises `InputError` for what cannot be served, `Refusal` for a model that cannot write, and `Full` when too many
        requests wait already.
        """
        (request,) = accept(
            self.model, [prompt], [sampling], eos=self.eos, start=self.start, context=self.settings.context,
            first=self._number,
        )  # fmt: skip
        if sampling.stop and self.token_bytes is None:
            raise InputError(
                "`stop` strings are matched on the bytes of tokens: hand in `token_bytes`, or use `stop_ids`."
            )
        now = self.clock()
        job = Job(request, [Line(request, choice) for choice in range(sampling.n)], listener, adapter)
        if not request.room and sampling.prompt_logprobs is None:
            for line in job.lines:
                line.done = True
            job.ended = True
            return job
        root = (tenant, adapter, self.version, request.rotary, request.source)
        sequence = self.scheduler.add(
            Ask(
                key=request.number,
                ids=list(request.prompt),
                room=request.room,
                root=root_of(root),
                share=sampling.prompt_logprobs is None,
                source=len(request.source or ()),
                priority=priority,
                tenant=tenant,
                deadline=None if timeout is None else now + timeout,
                arrived=now,
            ),
            now,
        )
        job.sequences[0] = sequence
        self._number += 1
        self.jobs[job.key] = job
        return job

    def cancel(self, job: Job) -> list[Token]:
        """Ends what is not done of a request, as it is."""
        events = self._close(job, "cancelled")
        self.tell(events)
        self._sweep()
        return events

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not self.jobs

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], *, adapter: str | None = None
    ) -> list[Generation]:
        """Runs prompts to their end: `n` generations for each, in the order of prompts and choices."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(prompts):
            raise InputError(
                f"There are {len(prompts)} prompts and {len(samplings)} samplings: give one, or one for each."
            )
        jobs: list[Job] = []
        try:
            for prompt, own in zip(prompts, samplings, strict=True):
                jobs.append(self._patiently(prompt, own, adapter))
            while any(not job.ended for job in jobs):
                self.step()
        except BaseException:
            for job in jobs:
                self.cancel(job)
            raise
        results = []
        for number, job in enumerate(jobs):
            for generation in job.generations:
                generation.prompt = number
                results.append(generation)
        return results

    def _patiently(self, prompt: Sequence[int], sampling: Sampling, adapter: str | None) -> Job:
        while True:
            try:
                return self.submit(prompt, sampling, adapter=adapter)
            except Full:
                if self.idle:
                    raise
                self.step()

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(self) -> list[Token]:
        """One step for all that can run; the tokens it wrote, and the ends of requests that ended without one."""
        began = time.perf_counter()
        plan = self.scheduler.next(self.clock())
        self.stats.schedule += time.perf_counter() - began
        events: list[Token] = []
        for sequence, why in plan.ended:
            job = self.jobs[sequence.ask.key]
            if why == "deadline":
                events += self._close(job, "deadline")
            else:
                events += self._close(job, "error", "The engine's memory does not hold this request.")
        for sequence in plan.preempted:
            self._sourced.pop(sequence, None)
            self.stats.preemptions += 1
        if plan.works:
            self.store.copy_pages(plan.copies)
            self.store.copy_slots(plan.slot_copies)
            self.store.clear_slots(plan.slot_clears)
            with quiet(self.model):
                events += self._run(plan)
        self.tell(events)
        self._sweep()
        return events

    def tell(self, events: Iterable[Token]) -> None:
        """Hands tokens to those who listen."""
        for event in events:
            job = self.jobs.get(event.prompt)
            if job is not None and job.listener is not None:
                job.listener(event)

    def _sweep(self) -> None:
        """Forgets requests that are done."""
        for key in [key for key, job in self.jobs.items() if not job.open]:
            self.jobs.pop(key).ended = True

    def _close(self, job: Job, finish: Finish, error: str | None = None) -> list[Token]:
        """Ends all choices of a request that are not done; gives back what they held."""
        for sequence in job.sequences.values():
            self._release(sequence)
        job.sequences.clear()
        return [job.end(line, finish, error) for line in job.lines if not line.done]

    def _release(self, sequence: Run) -> None:
        self.scheduler.finish(sequence)
        self._sourced.pop(sequence, None)

    def _run(self, plan: Plan) -> list[Token]:
        failed: dict[Run, str] = {}
        try:
            reading = self._forward(plan.works)
        except Exception:  # whose fault was it? Each alone; who fails alone has failed
            reading, failed = self._one_by_one(plan.works)
        began = time.perf_counter()
        turn = Turn(self, plan, reading)
        events = turn.take()
        self.stats.choose += time.perf_counter() - began
        for sequence, why in failed.items():
            self.stats.failures += 1
            events += self._close(self.jobs[sequence.ask.key], "error", why)
        return events

    def _one_by_one(self, works: Sequence[Work]) -> tuple[Reading, dict[Run, str]]:
        """The same step, each sequence alone: what could be read, and why the rest could not."""
        failed: dict[Run, str] = {}
        parts: list[Tensor] = []
        spans: list[tuple[int, int]] = []
        rows = 0
        for work in works:
            try:
                reading = self._forward([work])
            except Exception as error:
                failed[work.sequence] = f"{type(error).__name__}: {error}"
                spans.append((0, 0))
                continue
            parts.append(reading.logits)
            spans.append((rows, reading.spans[0][1]))
            rows += len(reading.logits)
        return Reading(torch.cat(parts) if parts else torch.empty(0), spans), failed

    def _forward(self, works: Sequence[Work]) -> Reading:
        """Runs the model over the tokens of a step; logits of the rows that are wanted."""
        began = time.perf_counter()
        jobs = [self.jobs[work.sequence.ask.key] for work in works]
        state = Packed(self.store, works, [job.request.rotary for job in jobs], self._biases)
        state.sources = self._sources(works, jobs)
        rows: list[int] = []
        spans = []
        for number, work in enumerate(works):
            wanted = 1 + len(work.sequence.drafts) if work.final and jobs[number].request.room else 0
            spans.append((len(rows), wanted))
            rows += range(state.starts[number + 1] - wanted, state.starts[number + 1])
        packed = time.perf_counter()
        self.stats.pack += packed - began
        hidden = self.model.hidden(state.ids, cache=state)[0]  # [T,D]
        logits = self.model.head(hidden if len(rows) == len(hidden) else hidden[torch.tensor(rows, dtype=torch.int64)])
        for number, (work, job) in enumerate(zip(works, jobs, strict=True)):
            if job.request.sampling.prompt_logprobs is not None:
                self._hear(job, work, hidden[state.starts[number] : state.starts[number + 1]])
        state.settle()
        for work in works:
            if work.sequence.source_table:
                self._sourced[work.sequence] = list(work.sequence.source_table)
        self.stats.model += time.perf_counter() - packed
        return Reading(logits.float(), spans)

    def _sources(self, works: Sequence[Work], jobs: Sequence[Job]) -> Sources | None:
        """The encoder's output of sources that are not in their pages yet; each is read alone."""
        new = [
            (work.sequence, job.request.source)
            for work, job in zip(works, jobs, strict=True)
            if job.request.source is not None and self._sourced.get(work.sequence) != work.sequence.source_table
        ]
        if not new:
            return None
        ids = [torch.tensor([source], device=self.model.device) for _, source in new]
        hidden = torch.cat([self.model.encode_source(one) for one in ids], dim=1)
        tables = [sequence.source_table for sequence, _ in new]
        return Sources(hidden, source_slots(tables, [one.shape[1] for one in ids], self.store.page).to(hidden.device))

    def _hear(self, job: Job, work: Work, hidden: Tensor) -> None:
        """Notes how likely the tokens of a prompt are, from hidden states [T,D] of a chunk of it."""
        prompt, top = job.request.prompt, job.request.sampling.prompt_logprobs
        end = min(work.start + work.count, len(prompt) - 1)
        while job.heard - 1 < end and job.heard > work.start:
            place = job.heard - 1  # the token that says how likely the next one was
            some = hidden[place - work.start : min(place + SCORED, end) - work.start]
            after = prompt[place + 1 : place + 1 + len(some)]
            found = logprobs(self.model.head(some), after, [top] * len(after))
            for line in job.lines:
                if line.result.prompt_logprobs is not None:
                    line.result.prompt_logprobs += found
            job.heard += len(after)
