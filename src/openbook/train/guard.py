"""The guard: stops a run that went wrong, and says where.

It stops before a broken update: at a loss or a gradient that is not finite, and at a smoothed loss that climbed more
than `tolerance` nats above its lowest. What it remembers is part of the checkpoint. The explanation names the step,
the first layer whose output is not finite (the step is run again with hooks, same batch, same dropout), the parameter
whose gradient broke first, the last good checkpoint, and what to try.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openbook.errors import Diverged

WAIT = 50  # steps before a rising loss counts: the first ones are noise
MEMORY = 0.95  # of the smoothed loss


@dataclass
class Guard:
    """What is remembered of the losses of a run. `tolerance` 0 watches for NaN and infinity only."""

    tolerance: float = 2.0
    seen: int = 0
    average: float = 0.0  # of the loss, not yet corrected for its start at 0
    lowest: float = math.inf
    norms: list[float] = field(default_factory=list)  # the last few gradient norms

    def problem(self, loss: float, norm: float) -> str | None:
        """What is wrong with this step, in words; None if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the loss is {loss:.4g}, but its gradient is not finite"
        self.seen += 1
        self.norms = [*self.norms[-4:], norm]
        self.average = MEMORY * self.average + (1 - MEMORY) * loss
        smooth = self.average / (1 - MEMORY**self.seen)
        if self.tolerance and self.seen > WAIT and smooth > self.lowest + self.tolerance:
            return (
                f"the loss climbed to {smooth:.4g} (smoothed) from {self.lowest:.4g}, more than {self.tolerance:g} nats"
            )
        if self.seen > WAIT // 2:
            self.lowest = min(self.lowest, smooth)
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps (JSON has no infinity)."""
        kept = asdict(self)
        kept["lowest"] = None if math.isinf(self.lowest) else self.lowest
        return kept

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; the tolerance stays that of this run."""
        self.seen, self.average, self.norms = state["seen"], state["average"], list(state["norms"])
        self.lowest = math.inf if state["lowest"] is None else state["lowest"]


@dataclass(frozen=True, kw_only=True)
class Where:
    """The circumstances of a broken step, for the message."""

    step: int
    rows: tuple[int, int]  # [first, end) of the data
    lr: float
    clip: float
    checkpoint: Path | None


def explain(problem: str, where: Where, guard: Guard, model: nn.Module, again: Callable[[], None]) -> Diverged:
    """The error for a broken step. `again` runs its forward passes once more; the gradients are still on the model."""
    lines = [f"Training stopped at step {where.step}: {problem}. The weights were not updated with it."]
    source = first_broken_output(model, again)
    if source:
        lines.append(f"First output that is not finite: `{source}`.")
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not finite(p.grad)]
    if broken:
        # Gradients flow from the last layer to the first: the one nearest the loss broke first.
        more = f" ({len(broken)} parameters in all)" if len(broken) > 1 else ""
        lines.append(f"The gradient that broke first is that of `{broken[-1]}`{more}.")
    weights = [name for name, p in model.named_parameters() if not finite(p)]
    if weights:
        lines.append(f"The weight `{weights[0]}` itself is not finite.")
    if guard.norms:
        lines.append("Gradient norms before: " + ", ".join(f"{norm:.3g}" for norm in guard.norms) + ".")
    lines.append(f"Rows {where.rows[0]} to {where.rows[1] - 1} of the training data; learning rate {where.lr:.3g}.")
    lines.append(
        f"Last good checkpoint: '{where.checkpoint}'." if where.checkpoint else "No checkpoint had been saved yet."
    )
    clip = f"clip gradients (`train.clip`, now {where.clip:g})" if where.clip else "clip gradients (`train.clip 1.0`)"
    lines.append(
        "What helps most often: a lower `optimizer.lr`, a longer `schedule.warmup`, "
        f"{clip}, `z_loss` 1e-4, or `train.dtype float32` to see whether precision is the cause."
    )
    return Diverged("\n".join(lines))


def finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    return bool(torch.isfinite(tensor).all())


def first_broken_output(model: nn.Module, again: Callable[[], None]) -> str | None:
    """The name of the first module, in the order of the computation, whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            if not found and any(not finite(t) for t in _tensors(output)):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            again()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
