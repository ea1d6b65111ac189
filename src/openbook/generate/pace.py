"""What speculation brings, and how many drafts to make: the arithmetic, the count, and a pace that follows acceptance.

Symbols, as in Leviathan, Kalman & Matias 2023 (arXiv 2211.17192): alpha the chance that a draft is accepted, gamma the
drafts of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from openbook.generate.speculate import Proposal, Verdict


def expected(alpha: float, gamma: int) -> float:
    """Tokens of a pass when each of `gamma` drafts is accepted with chance `alpha` (Leviathan et al. 2023, eq. 1)."""
    return gamma + 1.0 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speedup(alpha: float, gamma: int, cost: float = 0.0) -> float:
    """How much faster writing becomes when a draft costs `cost` of a pass (Theorem 3.8)."""
    return expected(alpha, gamma) / (gamma * cost + 1)


def operations(alpha: float, gamma: int, cost: float = 0.0) -> float:
    """How many times the arithmetic without speculation; `cost`: a draft's share of a token's (Theorem 3.11)."""
    return (gamma * cost + gamma + 1) / expected(alpha, gamma)


@dataclass
class Tally:
    """What speculation did: for one request, or summed over many."""

    passes: int = 0
    proposed: int = 0
    tried: int = 0
    accepted: int = 0
    tokens: int = 0

    def note(self, proposal: Proposal, verdict: Verdict) -> None:
        """Counts a pass."""
        self.passes += 1
        self.proposed += len(proposal.drafts)
        self.tried += verdict.tried
        self.accepted += verdict.accepted
        self.tokens += len(verdict.tokens)

    @property
    def alpha(self) -> float:
        """The chance that a draft was accepted, among those that were judged."""
        return self.accepted / self.tried if self.tried else 0.0

    @property
    def per_pass(self) -> float:
        """Tokens of a pass."""
        return self.tokens / self.passes if self.passes else 0.0


@dataclass
class Pace:
    """How many drafts the next pass of a sequence should have, from what became of the last ones.

    The number that writes fastest at the recent acceptance, `cost` being what one draft adds to a pass (its drafting
    and its place in the pass, as a share of a pass without). Where none pays, one draft is tried now and then, ever
    more seldom while it fails, so that a drafter that is always wrong costs `cost / SELDOM` in the long run.
    """

    most: int = 8
    cost: float = 0.1
    hits: float = 1.4  # begins hopeful: two accepted of three
    tries: float = 2.1
    wait: int = 0  # passes until the next try
    patience: int = 2

    FORGET = 0.85  # weight of what was, at each pass
    SELDOM = 64

    def next(self) -> int:
        """Drafts for the next pass; 0: none."""
        if self.most < 1:
            return 0
        alpha = min(self.hits / self.tries, 0.995) if self.tries else 0.0
        best = max(range(self.most + 1), key=lambda gamma: speedup(alpha, gamma, self.cost))
        if best:
            return best
        if self.wait > 0:
            self.wait -= 1
            return 0
        return 1

    def note(self, verdict: Verdict) -> None:
        """Takes what became of a pass that had drafts."""
        if not verdict.tried:
            return
        self.hits = self.hits * self.FORGET + verdict.accepted
        self.tries = self.tries * self.FORGET + verdict.tried
        if verdict.accepted:
            self.patience = 2
        else:
            self.patience = min(2 * self.patience, self.SELDOM)
        self.wait = self.patience
