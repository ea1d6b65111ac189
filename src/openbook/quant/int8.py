"""Which matrices of a model become int8, and how: measured when the model is loaded.

Weights have one scale for each output, activations one for each row; a channel far larger than the others then costs
all others their precision. So each matrix is tried on rows that the original model gives it:

    error = ‖int8 product − product‖ / ‖product‖        over all calibration rows

Above a bound, SmoothQuant (Xiao et al. 2023, eq. 4) moves what is large from the activations into the weights,
s_j = max|x_j|^a / max|w_j|^(1-a), for a few a, one s for all matrices of one input, so that a row is quantised once for
them. What is still too far off is kept in bf16. Experts are not smoothed: theirs is int8 or bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook import log
from openbook.errors import InputError
from openbook.nn.attention import SelfAttention
from openbook.nn.heads import LanguageHead
from openbook.nn.latent import LatentAttention
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward, gated
from openbook.nn.model import LanguageModel
from openbook.nn.moe import Experts
from openbook.nn.packed import quantise, quantise_rows
from openbook.nn.serving import Choice, matrices
from openbook.quant.sample import rows_of, written

# Errors from which smoothing is tried, and from which a matrix stays bf16. A trained model with every matrix at 1–2.3%
# loses 0.03% of perplexity, one with many at 5% 0.2%, one with many at 20% 2% (bench/quality.py).
SMOOTH_ABOVE, KEEP_ABOVE = 0.03, 0.05
STRENGTHS = (0.3, 0.5, 0.7, 0.85)  # a
ROWS, OUTPUTS = 192, 1024  # of a product, at most, that the error is measured on
EXPERT_ROWS = 48
SHOWN = 8  # lines about single matrices


@dataclass(frozen=True)
class Found:
    """One matrix: its error as plain int8, its choice, the a of its smoothing, and its error as chosen."""

    name: str
    plain: float
    choice: Choice
    strength: float | None
    error: float

    def __str__(self) -> str:
        how = self.choice.kind if self.strength is None else f"{self.choice.kind} smoothed {self.strength}"
        return f"{self.name}: {how}, error {100 * self.error:.2f}% (int8 alone {100 * self.plain:.2f}%)"


@dataclass
class Plan:
    """What was decided for every matrix, in the order of the model."""

    found: list[Found] = field(default_factory=list)

    @property
    def choices(self) -> dict[str, Choice]:
        """For `serve_form`."""
        return {one.name: one.choice for one in self.found}

    def lines(self) -> list[str]:
        """A line for the whole, and some for matrices that are not plain int8."""
        count = {how: sum(_how(one) == how for one in self.found) for how in ("int8", "int8 smoothed", "bf16")}
        worst = max((one.error for one in self.found if one.choice.kind == "int8"), default=0.0)
        whole = ", ".join(f"{number} {how}" for how, number in count.items() if number)
        special = [f"  {one}" for one in self.found if _how(one) != "int8"]
        if len(special) > SHOWN:
            special[SHOWN:] = [f"  and {len(special) - SHOWN} more"]
        return [f"int8: {whole} of {len(self.found)} matrices, largest error {100 * worst:.2f}%", *special]


def _how(found: Found) -> str:
    return found.choice.kind if found.strength is None else f"{found.choice.kind} smoothed"


def plan_int8(
    model: LanguageModel,
    sample_ids: Sequence[Sequence[int]] | None = None,
    *,
    smooth_above: float = SMOOTH_ABOVE,
    keep_above: float = KEEP_ABOVE,
) -> dict[str, Choice]:
    """Matrix name → choice, for `serve_form(model, "int8", choices)`. Without ids the model writes its own sample."""
    plan = measure(model, sample_ids, smooth_above=smooth_above, keep_above=keep_above)
    for line in plan.lines():
        log.note(line)
    return plan.choices


@torch.no_grad()
def measure(
    model: LanguageModel,
    sample_ids: Sequence[Sequence[int]] | None = None,
    *,
    smooth_above: float = SMOOTH_ABOVE,
    keep_above: float = KEEP_ABOVE,
) -> Plan:
    """The same with the errors it was decided by."""
    given = None if sample_ids is None else rows_of([list(text) for text in sample_ids], model.spec.context)
    ids = written(model) if given is None else given.to(model.device)
    if not ids.numel():
        raise InputError(
            "There are no ids to measure int8 on: give some text, or None for what the model itself writes."
        )
    wanted = [name for name, choice in matrices(model, "int8").items() if choice.kind == "int8"]
    watch = Watch(Judge(smooth_above, keep_above), set(wanted))
    with watch.over(model):
        model(ids, source=ids) if model.source is not None else _forward(model, ids)
    return Plan([watch.found.get(name, Found(name, 0.0, Choice("bf16"), None, 0.0)) for name in wanted])


def _forward(model: LanguageModel, ids: Tensor) -> None:
    hidden = model.hidden(ids)
    if "language" in model.heads:
        model.head(hidden)


# ---------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Judge:
    """Decides for the matrices of one input."""

    smooth_above: float
    keep_above: float

    def judge(self, names: Sequence[str], weights: Sequence[Tensor], x: Tensor) -> list[Found]:
        """x [rows,in] and matrices [out,in] of that input."""
        x = x.float()
        some = [weight.detach()[:: max(1, -(-len(weight) // OUTPUTS))].float() for weight in weights]
        exact = [F.linear(x, weight) for weight in some]
        plain = [error(y, product(x, w, None)) for w, y in zip(some, exact, strict=True)]
        best, strength, smooth = plain, None, None
        if max(plain) > self.smooth_above:
            for candidate in STRENGTHS:
                scales = smoothing(x, weights, candidate)
                tried = [error(y, product(x, w, scales)) for w, y in zip(some, exact, strict=True)]
                if max(tried) < 0.9 * max(best):
                    best, strength, smooth = tried, candidate, scales
        return [self.found(*one, strength, smooth) for one in zip(names, plain, best, strict=True)]

    def found(self, name: str, plain: float, best: float, strength: float | None, smooth: Tensor | None) -> Found:
        if best > self.keep_above:
            return Found(name, plain, Choice("bf16"), None, 0.0)
        return Found(name, plain, Choice("int8", smooth), strength, best)


def smoothing(x: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """What the input [in] is multiplied by: 1 / s. Channels that are never used stay as they are."""
    large = x.abs().amax(dim=0)
    matrix = torch.stack([weight.detach().float().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    scale = large.pow(strength) / matrix.pow(1 - strength)
    usual = (large > 0) & (matrix > 0) & torch.isfinite(scale)
    scale = torch.where(usual, scale, 1.0)
    return (1 / scale.clamp(1e-5, 1e5)).contiguous()


def product(x: Tensor, weight: Tensor, smooth: Tensor | None) -> Tensor:
    """x Wᵀ as int8 gives it: the reference, in fp32."""
    if smooth is not None:
        x, weight = x * smooth, weight / smooth
    whole, step = quantise_rows(x)
    matrix, scale = quantise(weight)
    return F.linear(whole, matrix.float() - 128.0) * (step * scale)


def error(exact: Tensor, other: Tensor) -> float:
    """‖other − exact‖ / ‖exact‖; not a number counts as wholly wrong."""
    size = torch.linalg.vector_norm(exact)
    off = torch.linalg.vector_norm(other - exact)
    if not torch.isfinite(off):
        return 1.0
    return float(off / size) if size > 0 else 0.0


# ---------------------------------------------------------------------------------------------- watching


class Watch:
    """Judges every wanted matrix on rows of its input while the model runs; those of one input together."""

    def __init__(self, judge: Judge, wanted: set[str]) -> None:
        self.judge = judge
        self.wanted = wanted
        self.found: dict[str, Found] = {}

    @contextmanager
    def over(self, model: LanguageModel) -> Iterator[None]:
        """Watch inside."""
        modules = dict(model.named_modules())
        groups = _groups(modules, self.wanted)
        hooks: dict[str, Callable[..., None]] = {}
        for path, module in modules.items():
            match module:
                case Linear() if path in groups:
                    hooks[path] = partial(self.linear, groups[path], modules)
                case Experts() if f"{path}.up" in self.wanted:
                    hooks[path] = partial(self.experts, path)
                case LanguageHead() if path in self.wanted:
                    hooks[path] = partial(self.head, path)
                case _:
                    pass
        handles = [modules[path].register_forward_hook(hook) for path, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note(self, names: Sequence[str], weights: Sequence[Tensor], x: Tensor) -> None:
        """Judge the matrices of an input, once."""
        if names[0] not in self.found:
            self.found |= {one.name: one for one in self.judge.judge(names, weights, _some(x, ROWS))}

    def linear(
        self, names: list[str], modules: Mapping[str, nn.Module], _: nn.Module, inputs: tuple[Tensor, ...], __: Any
    ) -> None:
        parts = [part for name in names if isinstance(part := modules[name], Linear)]
        self.note(names, [part.weight for part in parts], inputs[0])

    def head(self, path: str, module: LanguageHead, inputs: tuple[Tensor, Tensor], _: Any) -> None:
        hidden, tied = inputs
        self.note([path], [module.matrix(tied)], module.before(hidden))

    def experts(self, path: str, module: Experts, inputs: tuple[Tensor, ...], _: Any) -> None:
        """Every expert on a few rows, one after the other; one choice for all of a kind."""
        x = _some(inputs[0], EXPERT_ROWS).float()
        sums: dict[str, Tensor] = {}  # of squares: what it is off, what it is

        def run(name: str, number: int, rows: Tensor) -> Tensor:
            stacked = module._parameters[name]
            assert stacked is not None
            weight = stacked[number].float()
            exact = F.linear(rows, weight)
            squares = torch.stack([(product(rows, weight, None) - exact).square().sum(), exact.square().sum()])
            sums[name] = sums[name] + squares if name in sums else squares
            return exact

        def biased(name: str, number: int, rows: Tensor) -> Tensor:
            bias = module._parameters.get(f"{name}_bias")
            return run(name, number, rows) if bias is None else run(name, number, rows) + bias[number].float()

        for number in range(len(module.up)):
            up = biased("up", number, x)
            plain = module._parameters["gate"] is None
            hidden = module.act(up) if plain else gated(module.spec.expert, biased("gate", number, x), up)
            run("down", number, hidden)
        for name, (off, size) in sums.items():
            found = float((off / size).sqrt()) if off > 0 and size > 0 else 0.0
            found = found if math.isfinite(found) else 1.0
            self.found.setdefault(f"{path}.{name}", self.judge.found(f"{path}.{name}", found, found, None, None))


def _groups(modules: Mapping[str, nn.Module], wanted: set[str]) -> dict[str, list[str]]:
    """The first linear map of each input → all of that input."""
    groups: dict[str, list[str]] = {}
    taken: set[str] = set()
    for path, module in modules.items():
        match module:
            case SelfAttention():
                together = [f"{path}.{name}" for name in ("q", "k", "v")]
            case LatentAttention(q_down=Linear()):
                together = [f"{path}.{name}" for name in ("q_down", "kv_down")]
            case LatentAttention(q=Linear()):
                together = [f"{path}.{name}" for name in ("q", "kv_down")]
            case FeedForward(gate=Linear()):
                together = [f"{path}.{name}" for name in ("gate", "up")]
            case Linear() if path not in taken:
                together = [path]
            case _:
                continue
        members = [one for one in together if one in wanted and one not in taken]
        taken |= set(members)
        if members:
            groups[members[0]] = members
    return groups


def _some(x: Tensor, most: int) -> Tensor:
    """At most `most` rows of x [..,in], evenly chosen: [rows,in]."""
    rows = x.detach().flatten(0, -2)
    return rows[:: max(1, -(-len(rows) // most))]
