"""What a training run is made of, where it is, and how that is saved and taken up again.

    Plan       decided before the first step, never changes
    Progress   plain numbers that move with every step
    Run        the two, with the model, the data, the optimiser and whoever watches

A checkpoint holds all that the next step depends on: weights, optimiser state, `Progress`, the guard's memory, the
random states, and the length of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from openbook.errors import ConfigError
from openbook.nn.model import LanguageModel
from openbook.train import ranks
from openbook.train.checkpoint import (
    Checkpoints,
    Snapshot,
    put_weights,
    random_states,
    restore_random_states,
    seed_everything,
    weights_of,
)
from openbook.train.guard import Guard
from openbook.train.heldout import Texts
from openbook.train.metrics import Journal, Watcher
from openbook.train.objectives import Objective
from openbook.train.optim import Optimizer
from openbook.train.schedules import Schedule
from openbook.train.step import Rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The fixed course of a run: all of it is decided before the first step."""

    steps: int
    rows: tuple[tuple[int, int], ...] = ((0, 8),)  # (from step, rows of a step): the batch may grow
    micro_rows: int = 0  # rows of one forward pass; 0: all rows of the step
    clip: float = 1.0  # limit of the gradient norm; 0: none
    seed: int = 0
    heldout_every: int = 0  # steps between held-out measurements; 0: only at the end
    patience: int = 0  # measurements without improvement before stopping; 0: never
    improvement: float = 0.0  # nats by which the held-out loss must fall to count as better
    correction: float = 0.0  # by which experts are balanced after each step (train/experts.py); 0: not
    layers_every: int = 10  # steps between gradient norms by layer in the metrics; 0: never

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"`train.steps` must be 1 or more: got {self.steps}.")
        froms = [step for step, _ in self.rows]
        if not froms or froms[0] != 0 or froms != sorted(set(froms)) or any(rows < 1 for _, rows in self.rows):
            raise ConfigError(
                f"`train.rows` lists (from step, rows) pairs, from step 0 on, rising, rows 1 or more: got {self.rows}."
            )
        if min(rows for _, rows in self.rows) < ranks.size():
            raise ConfigError(
                f"`train.rows` must be at least the number of processes ({ranks.size()}): got {self.rows}."
            )
        if not self.clip >= 0:
            raise ConfigError(f"`train.clip` must be 0 or more: got {self.clip}.")

    def rows_at(self, step: int) -> int:
        """Rows of this step."""
        return [rows for start, rows in self.rows if start <= step][-1]


@dataclass
class Progress:
    """Where a run is; plain numbers, all of them in the checkpoint."""

    step: int = 0  # steps done
    row: int = 0  # rows read: the data position
    tokens: int = 0
    seconds: float = 0.0  # of training, all parts of an interrupted run together
    best: float | None = None  # lowest held-out loss
    best_step: int = 0
    stale: int = 0  # held-out measurements since the best


@dataclass(kw_only=True)
class Run:
    """Everything a training run is made of. `sample` writes a little with the model, now and then, for the display."""

    model: LanguageModel
    objective: Objective
    rows: Rows
    optimizer: Optimizer
    schedule: Schedule
    plan: Plan
    heldout: Texts | None = None
    store: Checkpoints | None = None
    journal: Journal | None = None
    watchers: Sequence[Watcher] = ()
    sample: Callable[[LanguageModel], str] | None = None
    guard: Guard = field(default_factory=Guard)
    progress: Progress = field(default_factory=Progress)
    resume_with: str = "the same command"

    def tell(self, record: dict[str, Any]) -> None:
        """One record to the journal and to every watcher; only the first rank speaks."""
        if ranks.rank() == 0:
            for watcher in (*([self.journal] if self.journal else []), *self.watchers):
                watcher.record(record)

    @property
    def done(self) -> bool:
        """Whether the plan is fulfilled, or held-out text has not improved for too long."""
        early = self.plan.patience > 0 and self.progress.stale >= self.plan.patience
        return early or self.progress.step >= self.plan.steps


def save(run: Run, saved: int) -> int:
    """Write a checkpoint of now, if there is a folder and something new; returns the step that is saved."""
    if run.store is None or run.progress.step == saved:
        return saved
    if ranks.rank() == 0:
        position = run.journal.position() if run.journal else 0
        record = {**asdict(run.progress), "guard": run.guard.state(), "random": random_states(), "journal": position}
        run.store.save(Snapshot(model=weights_of(run.model), optimizer=run.optimizer.state(), record=record))
    ranks.meet()
    return run.progress.step


def resume(run: Run) -> bool:
    """Put the newest checkpoint's state into `run`; without one, the start of the run, and False."""
    snapshot = run.store.latest() if run.store else None
    if snapshot is None:
        seed_everything(run.plan.seed)
        if run.journal:
            run.journal.rewind(0)
        return False
    put_weights(run.model, snapshot.model)
    run.optimizer.restore(snapshot.optimizer)
    record = snapshot.record
    run.progress = Progress(**{name: record[name] for name in asdict(Progress())})
    run.guard.restore(record["guard"])
    restore_random_states(record["random"])
    if run.journal and ranks.rank() == 0:
        run.journal.rewind(record["journal"])
    return True
