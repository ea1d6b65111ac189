"""How long requests wait for their first step: counts by duration, as a histogram has them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Many

from openbook.generate.plan import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Waits:
    """`counts[i]`: requests that waited at most SECONDS[i], and longer than the bound before; the last, than all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0  # of all together

    def note(self, begun: Many[Sequence], now: float) -> None:
        """These begin now. What branches off a request does not wait."""
        for sequence in begun:
            if sequence.choice == 0:
                waited = max(0.0, now - sequence.ask.arrived)
                self.counts[bisect_left(SECONDS, waited)] += 1
                self.seconds += waited

    def cumulative(self) -> list[tuple[float, int]]:
        """For each bound, how many waited at most so long; the last bound is infinite."""
        total, found = 0, []
        for bound, count in zip((*SECONDS, float("inf")), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found
