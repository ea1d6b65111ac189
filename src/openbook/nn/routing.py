"""Routers: from logits to the experts of each token and their weights, and the losses that keep routers healthy.

    token choice    scores = softmax or sigmoid of the logits; each token takes its k best, perhaps of the best groups
                    only (DeepSeek-AI 2024a §2.2.2), perhaps with a bias that chooses but does not weigh
                    (Wang et al. 2024)

Load balancing: Fedus et al. 2021 §2.2. Router z-loss: Zoph et al. 2022 eq. 5. Symbols: see shapes.py.
"""

from __future__ import annotations

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


def balance_loss(routers: list[Routed], real: Tensor | None = None) -> Tensor:
    """E · Σ share of assignments · mean probability over all layers (Fedus et al. 2021, eq. 4–6); top_k when uniform.

    `real` [tokens] marks the tokens that are no padding. Sigmoid scores are divided by their sum first, as
    DeepSeek-AI 2024b eq. 19 does.
    """
    scores = torch.stack([routed.scores for routed in routers])  # [layers,tokens,E]
    probabilities = scores / scores.sum(dim=-1, keepdim=True)
    experts = scores.shape[-1]
    chosen = torch.stack([F.one_hot(routed.chosen, experts).sum(dim=1) for routed in routers])  # [layers,tokens,E]
    weight = torch.ones(scores.shape[1], device=scores.device) if real is None else real.float()
    total = weight.sum() * len(routers)
    share = torch.einsum("lte,t->e", chosen.float(), weight) / total
    mean = torch.einsum("lte,t->e", probabilities, weight) / total
    return (share * mean).sum() * experts
