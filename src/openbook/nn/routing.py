"""Routers: from logits to the experts of each token and their weights, and the losses that keep routers healthy.

    token choice    scores = softmax or sigmoid of the logits; each token takes its k best, perhaps of the best groups
                    only (DeepSeek-AI 2024a §2.2.2), perhaps with a bias that chooses but does not weigh
                    (Wang et al. 2024). In training an expert may be full (`within_capacity`)
    expert choice   each expert takes its C best tokens (Zhou et al. 2022 §3.2): every expert has the same load, and
                    what a token gets depends on the others, so that it cannot be served

Load balancing: Fedus et al. 2021 §2.2. Router z-loss: Zoph et al. 2022 eq. 5. Symbols: see shapes.py; C tokens of an
expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.errors import ConfigError
from openbook.nn import spec
from openbook.nn.activation import activate

TINY = 1e-20  # beside a sum that could be zero


class Routed(NamedTuple):
    """What a router decided for its tokens, in fp32."""

    logits: Tensor  # [tokens,E]
    scores: Tensor  # [tokens,E]
    chosen: Tensor  # [tokens,k] experts
    weights: Tensor  # [tokens,k]
    kept: Tensor | None = None  # [tokens,k] boolean: what was within the capacity; None: all

    def loads(self, real: Tensor) -> Tensor:
        """Of the tokens marked `real` [tokens]: how many chose each expert, choices in all, and choices lost, [E+2]."""
        wanted = real.unsqueeze(-1).expand_as(self.chosen).float()
        counts = torch.zeros_like(self.logits[0]).index_add_(0, self.chosen.flatten(), wanted.flatten())
        lost = wanted.sum() * 0 if self.kept is None else (wanted * ~self.kept).sum()
        return torch.cat([counts, torch.stack([wanted.sum(), lost])])


class Picked(NamedTuple):
    """What the experts picked, in fp32. Weight 0: a pick that is none, where there are fewer real tokens."""

    logits: Tensor  # [tokens,E]
    scores: Tensor  # [tokens,E]
    tokens: Tensor  # [E,C]
    weights: Tensor  # [E,C]

    def loads(self, real: Tensor) -> Tensor:
        """Real tokens that each expert picked, real tokens in all, and those that no expert picked, [E+2]."""
        taken = (self.weights > 0).float()
        seen = torch.zeros_like(self.logits[:, 0]).index_add_(0, self.tokens.flatten(), taken.flatten())
        wanted = real.float()
        return torch.cat([taken.sum(dim=1), torch.stack([wanted.sum(), (wanted * (seen == 0)).sum()])])


Decision = Routed | Picked


def route(moe: spec.MoE, logits: Tensor, correction: Tensor | None = None) -> Routed:
    """Logits [tokens,E] fp32, correction [E] → the k experts of each token. Each row depends on itself alone."""
    rule = moe.routing
    scores = logits.softmax(dim=-1) if rule.score == "softmax" else activate("sigmoid", logits)
    ranked = scores if correction is None else scores + correction.float()
    if rule.groups > 1:
        ranked = _within_groups(ranked, rule)
    chosen = ranked.topk(moe.top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if rule.renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
    if rule.scale != 1.0:
        weights = weights * rule.scale
    return Routed(logits, scores, chosen, weights)


def within_capacity(moe: spec.MoE, routed: Routed, real: Tensor) -> Routed:
    """The same, without what is beyond `moe.capacity` times an expert's fair share of the real tokens.

    First choices go before second ones, and earlier tokens before later ones (Lepikhin et al. 2020 §2.2; Fedus et al.
    2021 §2.2). Padding takes no place.
    """
    assert moe.capacity is not None
    tokens, top_k = routed.chosen.shape
    expert = torch.where(real.unsqueeze(-1), routed.chosen, moe.experts).t().flatten()  # [k·tokens]
    order = expert.argsort(stable=True)
    counts = torch.zeros(moe.experts + 1, dtype=torch.int64, device=expert.device)
    counts.index_add_(0, expert, torch.ones_like(expert))
    place = torch.arange(len(expert), device=expert.device)
    rank = torch.empty_like(place).index_copy_(0, order, place - (counts.cumsum(0) - counts)[expert[order]])
    most = torch.ceil(moe.capacity * top_k * real.sum() / moe.experts)
    kept = (rank < most) & (expert < moe.experts)
    return routed._replace(kept=kept.unflatten(0, (top_k, tokens)).t())


def pick(moe: spec.MoE, logits: Tensor, real: Tensor) -> Picked:
    """Logits [tokens,E] → the tokens of each expert: `top_k` in the mean for each real token."""
    scores = logits.softmax(dim=-1) if moe.routing.score == "softmax" else activate("sigmoid", logits)
    most = min(len(logits), -(-len(logits) * moe.top_k // moe.experts))
    weights, tokens = scores.masked_fill(~real.unsqueeze(-1), 0.0).t().topk(most, dim=-1)  # [E,C]
    wanted = torch.ceil(real.sum() * moe.top_k / moe.experts)
    weights = weights * (torch.arange(most, device=logits.device) < wanted) * moe.routing.scale
    return Picked(logits, scores, tokens, weights)


def _within_groups(ranked: Tensor, rule: spec.Routing) -> Tensor:
    """Ranked [tokens,E] with everything outside of each token's best groups at minus infinity."""
    grouped = ranked.unflatten(-1, (rule.groups, -1))  # [tokens,groups,E/groups]
    if rule.group_score == "max":
        worth = grouped.amax(dim=-1)
    else:
        first, second = grouped.topk(2, dim=-1).values.unbind(-1)
        worth = first + second
    best = worth.topk(rule.top_groups, dim=-1).indices  # [tokens,top_groups]
    open_ = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~open_.unsqueeze(-1), float("-inf")).flatten(-2)


def check_routing(moe: spec.MoE) -> None:
    """What a router can do."""
    rule = moe.routing
    if rule.choice == "expert" and (rule.groups > 1 or rule.correction or rule.input_scaled or moe.capacity):
        raise ConfigError("Experts that choose tokens know no groups, correction, scaled inputs or capacity.")
    if not 1 <= moe.top_k <= moe.experts:
        raise ConfigError(f"`top_k` must be 1 to `experts`: got top_k={moe.top_k}, experts={moe.experts}.")
    if moe.experts % rule.groups or not 1 <= rule.top_groups <= rule.groups:
        raise ConfigError(
            "`groups` must divide `experts`, and `top_groups` be 1 to `groups`: "
            f"got experts={moe.experts}, groups={rule.groups}, top_groups={rule.top_groups}."
        )
    size = moe.experts // rule.groups
    if moe.top_k > rule.top_groups * size:
        raise ConfigError(f"{rule.top_groups} groups of {size} experts cannot give top_k={moe.top_k} of them.")
    if rule.groups > 1 and rule.group_score == "sum2" and size < 2:
        raise ConfigError(f"Groups judged by their two best need two experts each: got {size}.")


def expert_choice(model: spec.Model) -> bool:
    """Whether experts choose tokens somewhere, so that a token's logits depend on other sequences."""
    stacks = [model.stack] + ([model.source.stack] if model.source else [])
    layers = {branch.layer for stack in stacks for block in stack.blocks for branch in block.branches}
    return any(isinstance(layer, spec.MoE) and layer.routing.choice == "expert" for layer in layers)


def z_loss(routers: Sequence[Decision], real: Tensor | None = None) -> Tensor:
    """Σ over real tokens of the mean over layers of (log Σ exp logits)² (Zoph et al. 2022, eq. 5)."""
    squares = torch.stack([routed.logits.logsumexp(dim=-1).square() for routed in routers]).mean(dim=0)  # [tokens]
    return squares.sum() if real is None else (squares * real).sum()


def balance_loss(routers: Sequence[Routed], real: Tensor | None = None) -> Tensor:
    """E · Σ share of assignments · mean probability over all layers (Fedus et al. 2021, eq. 4–6); top_k when uniform.

    `real` [tokens] marks the tokens that are no padding. Sigmoid scores are divided by their sum first, as
    DeepSeek-AI 2024b eq. 19 does.
    """
    scores = torch.stack([routed.scores for routed in routers])  # [layers,tokens,E]
    probabilities = scores / scores.sum(dim=-1, keepdim=True)
    experts = scores.shape[-1]
    # What was chosen, kept or not: a full expert must be felt.
    chosen = torch.stack([F.one_hot(routed.chosen, experts).sum(dim=1) for routed in routers])  # [layers,tokens,E]
    weight = torch.ones(scores.shape[1], device=scores.device) if real is None else real.float()
    total = weight.sum() * len(routers)
    share = torch.einsum("lte,t->e", chosen.float(), weight) / total
    mean = torch.einsum("lte,t->e", probabilities, weight) / total
    return (share * mean).sum() * experts
