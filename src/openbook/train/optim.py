"""Optimisers, and which parameter gets what.

Parameters fall into three kinds: matrices (linear maps, stacked experts), embeddings (token and position vectors, the
head), and vectors (norms, biases, the coefficients of state spaces), which are never decayed. `adamw` moves all of
them by AdamW (Loshchilov & Hutter 2019); `muon` moves the matrices by Muon (Jordan et al. 2024), with the step size
of Liu et al. 2025 §2.2, so that one learning rate serves both.

The state is read and written by parameter name, as tensors only. The learning rate is no state: it is a function of
the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openbook.errors import CheckpointError, ConfigError
from openbook.nn.embed import Table
from openbook.nn.heads import LanguageHead
from openbook.nn.linear import Linear
from openbook.nn.moe import Experts


class Kind(Enum):
    """What a parameter is, as far as an optimiser cares."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    VECTOR = "vector"


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How parameters move. The three multipliers scale the learning rate of each kind of parameter."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3  # at the peak of the schedule
    weight_decay: float = 0.1  # of matrices and embeddings, decoupled
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95  # of muon
    matrix_lr: float = 1.0
    embedding_lr: float = 1.0
    vector_lr: float = 1.0
    embedding_decay: bool = True

    def __post_init__(self) -> None:
        positive = {"lr": self.lr, "eps": self.eps}
        least_zero = {name: getattr(self, name) for name in ("weight_decay", "matrix_lr", "embedding_lr", "vector_lr")}
        for name, value in (positive | least_zero).items():
            if not math.isfinite(value) or value < 0 or (name in positive and value == 0):
                raise ConfigError(
                    f"`optimizer.{name}` must be {'above' if name in positive else 'at least'} 0: got {value}."
                )
        for name, value in (("betas[0]", self.betas[0]), ("betas[1]", self.betas[1]), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise ConfigError(f"`optimizer.{name}` must be from 0 to below 1: got {value}.")

    def scale(self, kind: Kind) -> float:
        """The learning-rate multiplier of a kind of parameter."""
        return {Kind.MATRIX: self.matrix_lr, Kind.EMBEDDING: self.embedding_lr, Kind.VECTOR: self.vector_lr}[kind]

    def decay(self, kind: Kind) -> float:
        """The weight decay of a kind of parameter."""
        if kind is Kind.VECTOR or (kind is Kind.EMBEDDING and not self.embedding_decay):
            return 0.0
        return self.weight_decay


def kinds(model: nn.Module) -> dict[str, Kind]:
    """What each trainable parameter is, by the module it belongs to; a shared parameter is listed once."""
    found: dict[str, Kind] = {}
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            found[name] = _kind(module, parameter)
    return found


def _kind(module: nn.Module, parameter: nn.Parameter) -> Kind:
    if parameter.ndim < 2:
        return Kind.VECTOR
    if isinstance(module, Table | LanguageHead | nn.Embedding):
        return Kind.EMBEDDING
    if isinstance(module, Linear | Experts | nn.Linear):
        return Kind.MATRIX
    return Kind.VECTOR


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal in five Newton–Schulz steps (Jordan et al. 2024); matrices and stacks [E,F,D] of them.

    Equal to `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` on matrices (a test holds it to that); torch's own does
    not take stacked experts, which here are a batch of matrices.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "a Muon step does not evaluate the loss again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"], group["momentum"])

    def _move(self, parameter: nn.Parameter, gradient: Tensor, lr: float, decay: float, momentum: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        step = orthogonal(gradient.lerp(average, momentum))  # Nesterov
        rows, columns = parameter.shape[-2:]
        parameter.mul_(1 - lr * decay)
        parameter.add_(step, alpha=-lr * 0.2 * math.sqrt(max(rows, columns)))


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest half-orthogonal matrix [...,F,D], roughly: singular values end between about 0.7 and 1.2. In bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16().reshape(-1, *matrix.shape[-2:])  # [batch,F,D]
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrix.shape)


class Optimizer:
    """The optimisers of a model behind one face: step at a factor of the peak, state by parameter name."""

    def __init__(self, model: nn.Module, settings: Optimisation) -> None:
        self.settings = settings
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self.named:
            raise ConfigError("There is nothing to train: no parameter of the model requires a gradient.")
        self.kinds = kinds(model)
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for kind in Kind:
            parameters = [self.named[name] for name, its in self.kinds.items() if its is kind]
            if parameters:
                group = {"params": parameters, "scale": settings.scale(kind), "weight_decay": settings.decay(kind)}
                groups[settings.name == "muon" and kind is Kind.MATRIX].append(group)
        self.parts: list[torch.optim.Optimizer] = []
        if groups[True]:
            self.parts.append(Muon(groups[True], settings.lr, settings.weight_decay, settings.momentum))
        if groups[False]:
            fused = all(p.device.type in ("cpu", "cuda") for p in self.named.values())
            self.parts.append(
                torch.optim.AdamW(groups[False], lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
            )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, in the order of the model."""
        return list(self.named.values())

    def step(self, factor: float) -> float:
        """Move all parameters at `factor` of the peak learning rate; returns that learning rate."""
        lr = self.settings.lr * factor
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["scale"]
            part.step()
        return lr

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    def forget(self) -> None:
        """Be as new: no gradients, no moments."""
        self.clear()
        for part in self.parts:
            part.state.clear()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on: `{parameter}/{what}` → tensor."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.named.items()}
        return {
            f"{names[parameter]}/{what}": value
            for part in self.parts
            for parameter, entry in part.state.items()
            for what, value in entry.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the state that `state()` gave."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.named.items()}
        entries: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, what = key.rpartition("/")
            if name not in self.named:
                raise CheckpointError(f"The optimiser state has '{name}', which is no parameter of this model.")
            entries.setdefault(name, {})[what] = value
        for part in self.parts:
            part.state.clear()
            for parameter in (p for group in part.param_groups for p in group["params"]):
                for what, value in entries.get(names[parameter], {}).items():
                    part.state[parameter][what] = value.to(parameter.device, copy=True)
