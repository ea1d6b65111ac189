"""The forward pass of one step of the engine: from the works of a plan to the logits that are wanted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from openbook.adapters.lora import Bank
from openbook.generate.feed import SCORED
from openbook.generate.job import Job, Reading
from openbook.generate.output import logprobs
from openbook.generate.packed import Biases, Packed, Sources, source_slots
from openbook.generate.plan import Sequence as Run
from openbook.generate.plan import Work
from openbook.generate.settings import Stats
from openbook.generate.store import Store
from openbook.generate.threads import Threads
from openbook.nn.model import LanguageModel


class Reader:
    """Reads tokens into `store` with `model`."""

    def __init__(self, model: LanguageModel, store: Store, jobs: Mapping[int, Job], stats: Stats) -> None:
        self.model = model
        self.store = store
        self.jobs = jobs
        self.stats = stats
        self.biases = Biases()
        self.bank: Bank | None = None
        self.threads: Threads | None = None
        self.sourced: dict[Run, list[int]] = {}  # whose source's keys are in these pages

    def read_each(self, works: Sequence[Work]) -> tuple[Reading, dict[Run, str]]:
        """The same step, each sequence alone: what could be read, and why the rest could not."""
        failed: dict[Run, str] = {}
        parts: list[Tensor] = []
        states: list[Packed] = []
        spans: list[tuple[int, int]] = []
        rows = 0
        for work in works:
            try:
                reading = self.read([work])
            except Exception as error:
                failed[work.sequence] = f"{type(error).__name__}: {error}"
                spans.append((0, 0))
                continue
            parts.append(reading.logits)
            states += reading.states
            spans.append((rows, reading.spans[0][1]))
            rows += len(reading.logits)
        return Reading(torch.cat(parts) if parts else torch.empty(0), spans, states), failed

    def read(self, works: Sequence[Work]) -> Reading:
        """Runs the model over the tokens of a step; logits of the rows that are wanted."""
        began = time.perf_counter()
        jobs = [self.jobs[work.sequence.ask.key] for work in works]
        state = Packed(self.store, works, [job.request.rotary for job in jobs], self.biases.at(self.model.pushed))
        state.sources = self._sources(works, jobs)
        rows: list[int] = []
        spans = []
        for number, work in enumerate(works):
            wanted = 1 + len(work.sequence.drafts) if work.final and jobs[number].request.room else 0
            spans.append((len(rows), wanted))
            rows += range(state.starts[number + 1] - wanted, state.starts[number + 1])
        packed = time.perf_counter()
        self.stats.pack += packed - began
        if self.threads is not None:
            torch.set_num_threads(self.threads.choose(state.starts[-1]))
        with self._adapted(jobs, state):
            hidden = self.model.hidden(state.ids, cache=state)[0]  # [T,D]
        logits = self.model.head(hidden if len(rows) == len(hidden) else hidden[torch.tensor(rows, dtype=torch.int64)])
        for number, (work, job) in enumerate(zip(works, jobs, strict=True)):
            if job.request.sampling.prompt_logprobs is not None:
                self._hear(job, work, hidden[state.starts[number] : state.starts[number + 1]])
        for work in works:
            if work.sequence.source_table:
                self.sourced[work.sequence] = list(work.sequence.source_table)
        seconds = time.perf_counter() - packed
        self.stats.model += seconds
        if self.threads is not None:
            self.threads.note(state.starts[-1], torch.get_num_threads(), seconds)
        return Reading(logits.float(), spans, [state])

    def _sources(self, works: Sequence[Work], jobs: Sequence[Job]) -> Sources | None:
        """The encoder's output of sources that are not in their pages yet; each is read alone."""
        new = [
            (work.sequence, job.request.source, job.adapter)
            for work, job in zip(works, jobs, strict=True)
            if job.request.source is not None and self.sourced.get(work.sequence) != work.sequence.source_table
        ]
        if not new:
            return None
        hidden = torch.cat([self._encode(source, adapter) for _, source, adapter in new], dim=1)
        rows: dict[str, list[int]] = {}
        at = 0
        for _, source, adapter in new:
            if adapter is not None:
                rows.setdefault(adapter, []).extend(range(at, at + len(source)))
            at += len(source)
        slots = source_slots([s.source_table for s, _, _ in new], [len(ids) for _, ids, _ in new], self.store.page)
        adapted = tuple((name, torch.tensor(places)) for name, places in rows.items())
        return Sources(hidden, slots.to(hidden.device), adapted)

    @contextmanager
    def _adapted(self, jobs: Sequence[Job], state: Packed) -> Iterator[None]:
        """The adapters of a step, each for the rows of its requests."""
        if self.bank is None or not any(job.adapter for job in jobs):
            yield
            return
        names = sorted({job.adapter for job in jobs if job.adapter is not None})
        owner = torch.full((state.starts[-1],), -1)  # the adapter of each packed token, by its place in `names`
        for number, job in enumerate(jobs):
            if job.adapter is not None:
                owner[state.starts[number] : state.starts[number + 1]] = names.index(job.adapter)
        bank, source = self.bank, () if state.sources is None else state.sources.adapted

        def chosen(own: Tensor) -> AbstractContextManager[None]:
            return bank.using([(name, (own == number).nonzero()[:, 0]) for number, name in enumerate(names)], source)

        state.around = lambda rows: chosen(owner[rows])
        with chosen(owner):
            yield

    def _encode(self, source: Sequence[int], adapter: str | None) -> Tensor:
        """One source through the encoder, [1,S,D], alone."""
        ids = torch.tensor([source], device=self.model.device)
        if self.bank is None or adapter is None:
            return self.model.encode_source(ids)
        with self.bank.using([], [(adapter, slice(None))]):
            return self.model.encode_source(ids)

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
