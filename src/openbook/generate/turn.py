"""What becomes of a step's logits: the next tokens of each output, forks of a prompt with several, ends, the commit."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch

from openbook.errors import InputError, OpenbookError
from openbook.generate.beaming import Beams
from openbook.generate.job import Job, Reading
from openbook.generate.output import Line, logprobs
from openbook.generate.plan import Plan, Work
from openbook.generate.plan import Sequence as Run
from openbook.generate.requests import Logprob, Token, replay
from openbook.generate.sampler import Row
from openbook.generate.speculate import verify

if TYPE_CHECKING:
    from openbook.generate.engine import Engine


class Entry(NamedTuple):
    """An output that gets a token in this step, and the row of logits that it is drawn from."""

    work: Work
    job: Job
    line: Line
    row: int


class Turn:
    """One step's choice of tokens. `events`: where they are told, up to where it may break."""

    def __init__(
        self, engine: Engine, plan: Plan, reading: Reading, events: list[Token], failed: Collection[Run] = ()
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.reading = reading
        self.events = events
        self.forks: list[tuple[Run, Job, Line, int]] = []  # a choice that begins now, with its first token
        self.finished: list[tuple[Job, int]] = []
        self.beaming: list[tuple[Work, Job, int]] = []
        # Tokens that hold of sequences whose drafts were not all right, or that failed (what those wrote is not kept).
        self.accepted = {work.sequence: work.start for work in plan.works if work.sequence in failed}

    def take(self) -> None:
        """Chooses, commits, forks and ends."""
        entries, drafted = self._entries()
        if entries:
            self._choose(entries)
        if drafted:
            self._judge(drafted)
        self._commit()

    def _entries(self) -> tuple[list[Entry], list[tuple[Entry, int]]]:
        """Those that get one token, and those whose drafts are to be judged with the number of these."""
        entries, drafted = [], []
        for work, (row, count) in zip(self.plan.works, self.reading.spans, strict=True):
            job = self.engine.jobs[work.sequence.ask.key]
            if work.final and not job.request.room and work.sequence not in self.accepted:
                self._only_read(work, job)
            if not count:
                continue
            if job.request.sampling.beams > 1:
                self.beaming.append((work, job, row))
                continue
            entry = Entry(work, job, job.lines[work.sequence.choice], row)
            if count > 1:
                drafted.append((entry, count - 1))
                continue
            entries.append(entry)
            if not job.forked:  # the prompt is read: all choices begin here
                entries += [Entry(work, job, line, row) for line in job.lines[1:]]
                self._begin(job, work)
        return entries, drafted

    def _begin(self, job: Job, work: Work) -> None:
        job.forked = True
        stats, cached = self.engine.stats, work.sequence.cached
        stats.prompt_tokens += len(job.request.prompt)
        stats.cached_tokens += cached
        for line in job.lines:
            line.result.cached = cached

    def _only_read(self, work: Work, job: Job) -> None:
        """A request that wanted nothing but its prompt's log-probabilities."""
        self._begin(job, work)
        work.sequence.ids.append(0)
        self.events += [job.end(line, "length") for line in job.lines]
        self.finished.append((job, 0))

    def _choose(self, entries: list[Entry]) -> None:
        engine, logits = self.engine, self.reading.logits
        rows = [entry.row for entry in entries]
        logits = logits if rows == list(range(len(logits))) else logits[torch.tensor(rows)]
        tokens = engine.chooser.choose(logits, [entry.line.row for entry in entries])
        ids = [token if isinstance(token, int) else 0 for token in tokens]
        found = logprobs(logits, ids, [entry.line.request.sampling.logprobs for entry in entries])
        for entry, token, number, logprob in zip(entries, tokens, ids, found, strict=True):
            sequence, line = entry.work.sequence, entry.line
            own = sequence.choice == line.result.choice
            if isinstance(token, OpenbookError):
                self._fail(entry, token)
            else:
                self._say(line, number, logprob)
            if own:
                sequence.ids.append(number)
            elif not line.done:
                self.forks.append((sequence, entry.job, line, number))
            if line.done and own:
                self.finished.append((entry.job, line.result.choice))

    def _say(self, line: Line, token: int, logprob: Logprob | None) -> None:
        engine = self.engine
        self.events.append(line.take(token, engine.token_bytes, logprob, engine.version))
        if line.result.versions is not None:
            line.result.versions.append(engine.version)
        engine.stats.output_tokens += 1

    def _fail(self, entry: Entry, error: OpenbookError) -> None:
        self.engine.stats.failures += 1
        entry.line.result.refused = isinstance(error, InputError)
        self.events.append(entry.job.end(entry.line, "error", str(error)))

    def _judge(self, drafted: list[tuple[Entry, int]]) -> None:
        """Writes what the drafts of sequences were right in, and what comes after."""
        speculator, logits = self.engine.speculator, self.reading.logits
        assert speculator is not None
        places = {entry.line.row: entry.row for entry, _ in drafted}
        lines = {entry.line.row: entry.line for entry, _ in drafted}

        def over(row: Row, token: int) -> bool:
            place, line = places[row], lines[row]
            (found,) = logprobs(logits[place : place + 1], [token], [line.request.sampling.logprobs])
            places[row] = place + 1
            self._say(line, token, found)
            return line.done

        cases = [speculator.case(entry.work.sequence, entry.line, count) for entry, count in drafted]
        rows = [row for entry, count in drafted for row in range(entry.row, entry.row + count + 1)]
        part = logits if len(rows) == len(logits) else logits[torch.tensor(rows)]
        for (entry, count), case, verdict in zip(drafted, cases, verify(cases, part, over), strict=True):
            line, sequence = entry.line, entry.work.sequence
            if verdict.error is not None:
                self._fail(entry, verdict.error)
            elif places[line.row] - entry.row < len(verdict.tokens):
                over(line.row, verdict.tokens[-1])  # `verify` does not ask about what follows the last right draft
            speculator.note(sequence, case, verdict)
            sequence.ids += verdict.tokens or [0]
            if verdict.accepted < count:
                # A recurrent state cannot go back to the middle of what was read: it stays and reads again.
                kept = 0 if sequence.slot >= 0 else 1 + verdict.accepted
                self.accepted[sequence] = entry.work.start + kept
            if line.done:
                self.finished.append((entry.job, line.result.choice))

    def _beam(self, work: Work, job: Job, row: int) -> None:
        """Hands a beam its logits; when all beams of the request have theirs, they move."""
        engine = self.engine
        if job.beams is None:
            self._begin(job, work)
            job.beams = Beams(job.lines[0], work.sequence, engine.token_bytes)
            job.sequences.clear()
        if not job.beams.hear(work.sequence, self.reading.logits[row]):
            engine.scheduler.pause(work.sequence)
            return
        for sequence in job.beams.sequences:
            engine.scheduler.resume(sequence)
        try:
            if job.beams.move(self._fork, engine.release):
                return
            results = job.beams.results()
        except OpenbookError as error:
            engine.stats.failures += 1
            self.events += engine.end(job, "error", str(error))
            return
        said = list(replay(results))
        for line in job.lines:
            line.done = True
        job.results = results
        engine.stats.output_tokens += sum(len(found.ids) for found in results)
        self.events += said
        # Where too little was possible there are fewer outputs than were asked for; who listens counts the ends.
        self.events += [job.end(line, "error", "Fewer beams could be finished.") for line in job.lines[len(results) :]]

    def _fork(self, parent: Run, choice: int) -> Run:
        child = self.engine.scheduler.fork(parent, choice)
        if parent in self.engine.reader.sourced and child.source_table:
            self.engine.reader.sourced[child] = self.engine.reader.sourced[parent]
        return child

    def _commit(self) -> None:
        engine = self.engine
        began = time.perf_counter()
        back = {sequence.slot for sequence in self.accepted if sequence.slot >= 0}
        for state in self.reading.states:
            state.settle(back)
        engine.store.copy_slots(self.plan.saves)
        engine.scheduler.commit(self.plan, self.accepted)
        for sequence, job, line, token in self.forks:
            child = self._fork(sequence, line.result.choice)
            child.ids[-1] = token
            job.sequences[child.choice] = child
        for work, job, row in self.beaming:
            self._beam(work, job, row)
        for job, choice in self.finished:
            engine.release(job.sequences.pop(choice))
        engine.stats.commit += time.perf_counter() - began
