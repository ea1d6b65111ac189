"""Drafts for the sequences of an engine: who gets how many before a step, and what is learned from their fate."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

import torch

from openbook.generate.lookup import Lookup
from openbook.generate.output import Line
from openbook.generate.pace import Pace, Tally
from openbook.generate.plan import Sequence
from openbook.generate.sampler import Sampler
from openbook.generate.speculate import Case, Proposal, Verdict, fitting, historic


class Drafter(Protocol):
    """Proposes what may follow sequences."""

    cost: float  # of one draft, as a share of a pass of the model

    def propose(self, sequences: Many[Sequence], lines: Many[Line], counts: Many[int]) -> list[Proposal]:
        """Up to `counts[i]` drafts for each."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...


class LookupDrafter:
    """What followed the last time that the text ended as it ends now (lookup.py)."""

    cost = 0.05

    def __init__(self) -> None:
        self._known: dict[Sequence, Lookup] = {}

    def propose(self, sequences: Many[Sequence], lines: Many[Line], counts: Many[int]) -> list[Proposal]:  # noqa: ARG002
        found = []
        for sequence, count in zip(sequences, counts, strict=True):
            lookup = self._known.get(sequence)
            if lookup is None:
                lookup = self._known[sequence] = Lookup()
            lookup.extend(sequence.ids[len(lookup.ids) :])
            found.append(Proposal(lookup.propose(count)))
        return found

    def forget(self, sequence: Sequence) -> None:
        self._known.pop(sequence, None)


@dataclass
class _Habit:
    """What is known of one sequence's drafts."""

    pace: Pace
    proposal: Proposal = field(default_factory=Proposal)
    own: Sampler | None = None


class Speculator:
    """Hands out drafts of at most `most` ids, as many as pay."""

    def __init__(self, drafter: Drafter, most: int) -> None:
        self.drafter = drafter
        self.most = most
        self.tally = Tally()
        self._habits: dict[Sequence, _Habit] = {}

    def propose(self, ready: Many[tuple[Sequence, Line]]) -> None:
        """Sets the drafts of sequences that are about to write."""
        asked: list[tuple[Sequence, Line]] = []
        counts = []
        for sequence, line in ready:
            habit = self._habits.get(sequence)
            if habit is None:
                habit = self._habits[sequence] = _Habit(Pace(most=self.most, cost=self.drafter.cost))
            habit.proposal = Proposal()
            room = line.request.room - len(line.row.output)
            count = min(habit.pace.next(), room - 1)
            if count > 0:
                asked.append((sequence, line))
                counts.append(count)
        if not asked:
            return
        proposals = self.drafter.propose([s for s, _ in asked], [line for _, line in asked], counts)
        for (sequence, line), proposal in zip(asked, proposals, strict=True):
            drafts = fitting(line.row, proposal.drafts)
            self._habits[sequence].proposal = Proposal(drafts, proposal.chances)
            sequence.drafts = list(drafts)

    def case(self, sequence: Sequence, line: Line, count: int) -> Case:
        """What is to be judged: the first `count` of the drafts that were handed out."""
        habit = self._habits[sequence]
        row, proposal = line.row, habit.proposal
        if habit.own is None and historic(row):
            habit.own = Sampler([row], line.vocab, torch.device("cpu"))
        chances = None if proposal.chances is None else proposal.chances[:count]
        return Case(row, Proposal(proposal.drafts[:count], chances), habit.own)

    def note(self, sequence: Sequence, case: Case, verdict: Verdict) -> None:
        """Takes what became of a pass."""
        self._habits[sequence].pace.note(verdict)
        self.tally.note(case.proposal, verdict)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._habits.pop(sequence, None)
        self.drafter.forget(sequence)
