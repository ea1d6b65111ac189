"""The learning rate over a run: pure functions of the step, each a factor between 0 and 1 of the peak.

    warm-up      (step+1) / warmup                      Goyal et al. 2017 §2.2
    cosine       half a cosine down to `floor`          Loshchilov & Hutter 2016
    linear       a straight line down to `floor`
    wsd          constant, then 1 - √progress in the last `decay` share down to `floor`      Hägele et al. 2024 §3
    inverse-sqrt √(warmup / step)                       Vaswani et al. 2017 §5.3
    constant     1

`step` counts from 0; the factor of step `steps` is the floor, one step after the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openbook.errors import ConfigError

Shape = Literal["cosine", "linear", "wsd", "inverse-sqrt", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves. `warmup` and `decay` are shares of the run below 1, numbers of steps from 1 on."""

    shape: Shape = "cosine"
    warmup: float = 0.02
    floor: float = 0.1  # share of the peak at the end
    decay: float = 0.2  # of wsd: the last part of the run

    def __post_init__(self) -> None:
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise ConfigError(
                f"`schedule.warmup` must be 0 or more: got {self.warmup}. Below 1 it is a share of the run."
            )
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"`schedule.floor` is a share of the peak, from 0 to 1: got {self.floor}.")
        if not (math.isfinite(self.decay) and self.decay > 0):
            raise ConfigError(f"`schedule.decay` must be above 0: got {self.decay}. Below 1 it is a share of the run.")

    def factor(self, step: int, steps: int) -> float:
        """What the peak learning rate is multiplied by at `step` of a run of `steps`."""
        warmup = length(self.warmup, steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "constant":
            return 1.0
        if self.shape == "inverse-sqrt":
            return inverse_sqrt(step, warmup)
        if self.shape == "wsd":
            return wsd(step, steps, max(warmup, steps - length(self.decay, steps)), self.floor)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return (cosine if self.shape == "cosine" else linear)(progress, self.floor)


def length(amount: float, steps: int) -> int:
    """An amount of steps: a share of `steps` below 1, a number from 1 on."""
    return round(amount * steps) if amount < 1 else int(amount)


def cosine(progress: float, floor: float) -> float:
    """From 1 at progress 0 to `floor` at progress 1, along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, floor: float) -> float:
    """From 1 at progress 0 to `floor` at progress 1, along a line."""
    return floor + (1 - floor) * (1 - progress)


def wsd(step: int, steps: int, start: int, floor: float) -> float:
    """1 until `start`, then down to `floor` at `steps` by the square root of the progress."""
    if step < start:
        return 1.0
    return floor + (1 - floor) * (1 - math.sqrt(min(1.0, (step - start) / max(1, steps - start))))


def inverse_sqrt(step: int, warmup: int) -> float:
    """√(warmup / step) after the warm-up, 1 at its end."""
    return math.sqrt(max(1, warmup) / max(1, warmup, step + 1))
