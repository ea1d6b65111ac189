"""What training does about experts: losses that keep them busy, how busy they are, a correction that balances them.

    balance, router_z     terms of the loss, from what the routers decided (nn/routing.py)
    loads                 for each mixture, how many tokens each expert got in a step, over all micro-batches and ranks
    correct               after the optimiser's step: the correction of an expert with less than the mean load rises by
                          `speed`, of one with more it falls (Wang et al. 2024, alg. 1; DeepSeek-AI 2024b §2.1.2)

The z-loss is a sum over tokens. The balance loss and a capacity are of one micro-batch: a step does not depend on the
order of its micro-batches, but on their size. The correction needs the loads of the whole step only, so it depends on
neither. E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from openbook.errors import ConfigError
from openbook.nn import spec
from openbook.nn.build import AHEAD
from openbook.nn.model import LanguageModel
from openbook.nn.moe import Mixture
from openbook.nn.routing import Decision, Routed, balance_loss, z_loss

Decisions = Sequence[Decision]


@dataclass(frozen=True, kw_only=True)
class ExpertPart:
    """How a mixture of experts is trained; None: as the family says."""

    balance: float | None = None
    """Weight of the load-balancing loss."""
    z_loss: float | None = None
    """Weight of the router's z-loss; ST-MoE used 1e-3."""
    jitter: float | None = None
    """Multiplicative noise on the router's input."""
    capacity: float | None = None
    """Tokens an expert takes, as a multiple of its fair share; what is beyond goes past it."""
    correction: float = 0.0
    """Speed of balancing by a bias for each expert instead of a loss; DeepSeek-V3 used 1e-3. 0: none."""
    choice: Literal["token", "expert"] | None = None
    """Whether tokens choose experts or experts tokens; the latter cannot be served."""

    def __post_init__(self) -> None:
        if not 0 <= self.correction < math.inf:
            raise ConfigError(f"`experts.correction` must be 0 or more: got {self.correction}. DeepSeek-V3 used 1e-3.")

    @property
    def asked(self) -> bool:
        """Whether anything is asked for."""
        return self != ExpertPart()


def with_experts(model: spec.Model, part: ExpertPart, *, whole: bool = True) -> spec.Model:
    """The model as `part` wants it; without `whole`, only what stays when training has ended."""
    if not part.asked:
        return model

    def layer(its: spec.Layer) -> spec.Layer:
        if not isinstance(its, spec.MoE):
            return its
        correction = its.routing.correction or part.correction > 0
        its = replace(
            its, routing=replace(its.routing, correction=correction, choice=part.choice or its.routing.choice)
        )
        if not whole:
            return its
        return replace(
            its,
            balance=its.balance if part.balance is None else part.balance,
            z_loss=its.z_loss if part.z_loss is None else part.z_loss,
            jitter=its.jitter if part.jitter is None else part.jitter,
            capacity=its.capacity if part.capacity is None else part.capacity,
        )

    def block(its: spec.Block) -> spec.Block:
        return replace(its, branches=tuple(replace(branch, layer=layer(branch.layer)) for branch in its.branches))

    blocks = tuple(map(block, model.stack.blocks))
    if not any(isinstance(branch.layer, spec.MoE) for its in blocks for branch in its.branches):
        raise ConfigError("`experts` says how experts are trained, but this model has none.")
    heads = tuple(
        replace(head, block=block(head.block)) if isinstance(head, spec.MultiToken) else head for head in model.heads
    )
    return replace(model, stack=replace(model.stack, blocks=blocks), heads=heads)


Mixtures = Sequence[tuple[str, Mixture]]


def mixtures(model: LanguageModel, source: bool = False, ahead: bool = False) -> Mixtures:
    """The mixtures of the stack (or of the encoder's) by name, as they decide: in the order of its steps, those of a
    block that runs again once more. With `ahead` those of a multi-token head come after them.
    """
    tower, prefix = (model.source.stack, "source.stack") if source and model.source else (model.stack, "stack")
    parts = [(f"{prefix}.blocks.{number}", tower.blocks[number]) for number in tower.order]
    if ahead and AHEAD in model.heads:
        parts.append((f"heads.{AHEAD}", model.heads[AHEAD]))
    return [
        (f"{prefix}.{name}", layer)
        for prefix, part in parts
        for name, layer in part.named_modules()
        if isinstance(layer, Mixture)
    ]


def weights_of(layers: Mixtures) -> tuple[float, float]:
    """The weights of the load-balancing loss and of the z-loss, which all mixtures of a stack share (nn/limits.py)."""
    return next(((layer.spec.balance, layer.spec.z_loss) for _, layer in layers), (0.0, 0.0))


def losses(decisions: Decisions, real: Tensor) -> tuple[Tensor, Tensor]:
    """The load-balancing loss times the real tokens, and the z-loss summed over them. `real` [tokens] boolean."""
    chosen = [routed for routed in decisions if isinstance(routed, Routed)]
    groups: dict[tuple[int, int], list[Routed]] = {}
    for routed in chosen:
        groups.setdefault((routed.logits.shape[1], routed.chosen.shape[1]), []).append(routed)
    balance = sum((balance_loss(group, real) * len(group) for group in groups.values()), torch.zeros(()))
    return balance * real.sum() / max(len(chosen), 1), z_loss(decisions, real)


@torch.no_grad()
def loads(layers: Mixtures, decisions: Decisions, real: Tensor) -> dict[str, Tensor]:
    """For each mixture, `loads` of what it decided, each time that it did: see nn/routing.py."""
    found: dict[str, Tensor] = {}
    for (name, _), routed in zip(layers, decisions, strict=True):
        counts = routed.loads(real)
        found[name] = found[name] + counts if name in found else counts
    return found


@torch.no_grad()
def correct(model: LanguageModel, found: Mapping[str, Sequence[float]], speed: float) -> None:
    """Move each mixture's correction towards even loads; `found` are the loads of a whole step."""
    for name, layer in dict([*mixtures(model, ahead=True), *mixtures(model, source=True)]).items():
        if layer.correction is None or name not in found:
            continue
        counts = torch.tensor(found[name][:-2], dtype=torch.float64)
        missing = (counts.mean() - counts).sign()
        layer.correction.add_(missing.to(layer.correction), alpha=speed)


def utilisation(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How evenly experts were used: the least and the most busy of all, as multiples of a fair share; the mean entropy
    of the shares, 1 if even; and the part of the choices that was lost to full experts (or of tokens nobody picked)."""
    least, most, entropies, wanted, lost = math.inf, 0.0, [], 0.0, 0.0
    for numbers in found.values():
        counts, total = numbers[:-2], sum(numbers[:-2])
        shares = [count / total if total else 1 / len(counts) for count in counts]
        least, most = min(least, min(shares) * len(counts)), max(most, max(shares) * len(counts))
        surprise = -sum(share * math.log(share) for share in shares if share > 0)
        entropies.append(surprise / math.log(len(counts)) if len(counts) > 1 else 1.0)
        wanted, lost = wanted + numbers[-2], lost + numbers[-1]
    if not entropies:
        return {}
    entropy = sum(entropies) / len(entropies)
    return {"least": least, "most": most, "entropy": entropy, "dropped": lost / wanted if wanted else 0.0}
