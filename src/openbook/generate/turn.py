"""What becomes of a step's logits: the next token of each output, forks of a prompt with several, ends, the commit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from openbook.generate.job import Job, Reading
from openbook.generate.output import Line, logprobs
from openbook.generate.plan import Plan, Work
from openbook.generate.plan import Sequence as Run
from openbook.generate.requests import Token
from openbook.generate.sampler import nothing_left

if TYPE_CHECKING:
    from openbook.generate.engine import Engine


class Entry(NamedTuple):
    """An output that gets a token in this step, and the row of logits that it is drawn from."""

    work: Work
    job: Job
    line: Line
    row: int


class Turn:
    """One step's choice of tokens."""

    def __init__(self, engine: Engine, plan: Plan, reading: Reading) -> None:
        self.engine = engine
        self.plan = plan
        self.reading = reading
        self.events: list[Token] = []
        self.forks: list[tuple[Run, Job, Line, int]] = []  # a choice that begins now, with its first token
        self.finished: list[tuple[Job, int]] = []

    def take(self) -> list[Token]:
        """Chooses, commits, forks and ends; the events of the step."""
        entries = self._entries()
        if entries:
            self._choose(entries)
        self._commit()
        return self.events

    def _entries(self) -> list[Entry]:
        entries = []
        for work, (row, count) in zip(self.plan.works, self.reading.spans, strict=True):
            job = self.engine.jobs[work.sequence.ask.key]
            if work.final and not job.request.room:
                self._only_read(work, job)
            if not count:
                continue
            entries.append(Entry(work, job, job.lines[work.sequence.choice], row))
            if not job.forked:  # the prompt is read: all choices begin here
                entries += [Entry(work, job, line, row) for line in job.lines[1:]]
                job.forked = True
        return entries

    def _only_read(self, work: Work, job: Job) -> None:
        """A request that wanted nothing but its prompt's log-probabilities."""
        work.sequence.ids.append(0)
        self.events += [job.end(line, "length") for line in job.lines]
        self.finished.append((job, 0))

    def _choose(self, entries: list[Entry]) -> None:
        engine, logits = self.engine, self.reading.logits
        rows = [entry.row for entry in entries]
        logits = logits if rows == list(range(len(logits))) else logits[rows]
        tokens = engine.chooser.choose(logits, [entry.line.row for entry in entries])
        found = logprobs(logits, [max(t, 0) for t in tokens], [e.line.request.sampling.logprobs for e in entries])
        for entry, token, logprob in zip(entries, tokens, found, strict=True):
            sequence, line = entry.work.sequence, entry.line
            own = sequence.choice == line.result.choice
            if token < 0:
                self.events.append(entry.job.end(line, "error", str(nothing_left(line.row))))
            else:
                self.events.append(line.take(token, engine.token_bytes, logprob, engine.version))
                if line.result.versions is not None:
                    line.result.versions.append(engine.version)
            if own:
                sequence.ids.append(max(token, 0))
            elif not line.done:
                self.forks.append((sequence, entry.job, line, token))
            if line.done and own:
                self.finished.append((entry.job, line.result.choice))
            engine.stats.output_tokens += token >= 0

    def _commit(self) -> None:
        engine = self.engine
        began = time.perf_counter()
        engine.scheduler.commit(self.plan)
        for sequence, job, line, token in self.forks:
            child = engine.scheduler.fork(sequence, line.result.choice)
            child.ids[-1] = token
            job.sequences[child.choice] = child
            if sequence in engine.reader.sourced:
                engine.reader.sourced[child] = engine.reader.sourced[sequence]
        for job, choice in self.finished:
            engine.release(job.sequences.pop(choice))
        engine.stats.commit += time.perf_counter() - began
