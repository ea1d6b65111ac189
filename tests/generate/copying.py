"""Lookup, pace and tally of one row without an engine: what the laws of speculation drive."""

from __future__ import annotations

from openbook.generate.lookup import Lookup
from openbook.generate.pace import Pace, Tally
from openbook.generate.sampler import Row
from openbook.generate.speculate import Proposal, Verdict, fitting


class Copying:
    """Drafts of one sequence from its own past, at the pace that pays: see `generate/drafting.py` for an engine's."""

    def __init__(self, row: Row, most: int = 8, cost: float = 0.05) -> None:
        self.row = row
        self.pace = Pace(most=most, cost=cost)
        self.tally = Tally()
        self.lookup = Lookup([*row.prompt, *row.output])

    def propose(self, room: int | None = None) -> Proposal:
        """Drafts for the next pass, at most what leaves one of `room` output tokens to the model; often none."""
        self.lookup.extend(self.row.output[len(self.lookup.ids) - len(self.row.prompt) :])
        count = self.pace.next()
        return Proposal(fitting(self.row, self.lookup.propose(count), room) if count else ())

    def note(self, proposal: Proposal, verdict: Verdict) -> None:
        """Takes what became of it."""
        self.tally.note(proposal, verdict)
        self.pace.note(verdict)
