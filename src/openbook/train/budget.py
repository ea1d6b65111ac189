"""A time budget as a number of steps: measure first, then fix the course of the run.

A learning-rate schedule needs to know where the end is, and an exact resume needs an end that does not move. So a few
real steps, one held-out measurement and one sample are timed and undone, and the number of steps is kept with the
run.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

from openbook.errors import ConfigError
from openbook.train.checkpoint import put_weights, weights_of
from openbook.train.guard import Guard
from openbook.train.loop import advance, look
from openbook.train.run import Plan, Progress, Run

RESERVE = 0.06  # of the time, for checkpoints and what the measurement could not foresee
TIMED = 4.0  # seconds of steps that are timed at least


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measured seconds: of one row in a step, of one look at held-out text with a sample, of measuring all this."""

    row: float
    look: float
    spent: float


def measure_pace(run: Run) -> Pace:
    """Time `run` as it is; its model, optimiser and progress are afterwards what they were."""
    began = time.monotonic()
    before = {name: tensor.detach().clone() for name, tensor in weights_of(run.model).items()}
    trial = replace(run, store=None, journal=None, watchers=(), guard=Guard(tolerance=0.0), progress=Progress())
    rows = run.plan.rows_at(0)
    run.model.train()
    advance(trial)  # compiles, allocates
    times: list[float] = []
    while len(times) < 3 or (sum(times) < TIMED and len(times) < 50):
        trial.progress.step = 0
        started = time.monotonic()
        advance(trial)
        times.append(time.monotonic() - started)
    started = time.monotonic()
    look(trial)
    looked = time.monotonic() - started
    put_weights(run.model, before)
    run.optimizer.forget()
    return Pace(row=statistics.median(times) / rows, look=looked, spent=time.monotonic() - began)


def plan_for(plan: Plan, pace: Pace, seconds: float, looks: int) -> Plan:
    """`plan` with as many steps as fit into `seconds`, what was spent on measuring included.

    Errors: ConfigError for a budget in which nothing can be learned.
    """
    left = (seconds - pace.spent) * (1 - RESERVE) - looks * pace.look
    steps, used = 0, 0.0
    while True:
        used += plan.rows_at(steps) * pace.row
        if used > left:
            break
        steps += 1
    if steps < 10:
        one = plan.rows_at(0) * pace.row
        raise ConfigError(
            f"`train.minutes {seconds / 60:g}` is too short: after {pace.spent:.0f} s of measuring, {steps} steps of "
            f"{one:.2f} s fit. Give more minutes, smaller steps (`train.rows`, `data.block`) or a smaller model."
        )
    return replace(plan, steps=steps)
