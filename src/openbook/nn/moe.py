"""Token-choice mixture of experts (Jiang et al. 2024 §2), experts stacked [E,...] from the start.

`experts_reference` runs every expert on every token and weighs; the fast path sorts the tokens by expert and runs one
grouped product per matrix, with fixed shapes: no host sync, no capacity, nothing dropped. Symbols: see shapes.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import packed, spec
from openbook.nn.activation import ACTIVATIONS
from openbook.nn.grouped import grouped
from openbook.nn.linear import Linear, cast
from openbook.nn.packed import PackedStack
from openbook.nn.state import Context


class Experts(nn.Module):
    """E gated networks: gate and up [E,F,D], down [E,D,F]. A shard holds some of them, from number `first` on."""

    def __init__(self, moe: spec.MoE, dim: int) -> None:
        super().__init__()
        hidden = moe.expert.hidden
        self.total, self.first = moe.experts, 0
        self.gate = nn.Parameter(torch.empty(moe.experts, hidden, dim)) if moe.expert.gated else None
        self.up = nn.Parameter(torch.empty(moe.experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(moe.experts, dim, hidden))
        self.act = ACTIVATIONS[moe.expert.activation]

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [tokens,D], chosen experts [tokens,k] and their weights [tokens,k] → [tokens,D]."""
        held, expert = self.up.shape[0], chosen.flatten()
        if held < self.total:  # who is held elsewhere comes last, in no group
            expert = expert - self.first
            expert = torch.where((expert >= 0) & (expert < held), expert, held)
        order = expert.argsort(stable=True)  # [tokens·k], grouped by expert
        counts = torch.zeros(held + 1, dtype=torch.int32, device=x.device)
        counts.index_add_(0, expert, torch.ones_like(order, dtype=torch.int32))
        ends = counts[:held].cumsum(0).to(torch.int32)
        rows = x[order // chosen.shape[1]]
        hidden = through(self.up, rows, ends)
        if self.gate is None:
            hidden = self.act(hidden)
        else:
            hidden = self.act(through(self.gate, rows, ends)) * hidden
        out = through(self.down, hidden, ends) * weights.flatten()[order].unsqueeze(-1)
        # Back to token order first, then one sum over k: the order of additions does not depend on batch mates.
        return torch.empty_like(out).index_copy(0, order, out).unflatten(0, chosen.shape).sum(dim=1)


def through(stacked: Tensor | PackedStack, rows: Tensor, ends: Tensor) -> Tensor:
    """Each group's rows [n,D] times the matrix of its expert, [n,F]; the one choice of how."""
    if isinstance(stacked, PackedStack):
        return stacked.grouped(rows, ends)
    exact = packed.grouped(rows, stacked, ends)
    return grouped(rows, cast(stacked, rows.dtype), ends) if exact is None else exact


def experts_reference(experts: Experts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Every expert on every token, weighed by the router: what `Experts.forward` must equal."""
    hidden = torch.einsum("td,efd->tef", x, experts.up)
    gate = hidden if experts.gate is None else torch.einsum("td,efd->tef", x, experts.gate)
    hidden = experts.act(gate) if experts.gate is None else experts.act(gate) * hidden
    out = torch.einsum("tef,edf->ted", hidden, experts.down)
    share = torch.zeros(x.shape[0], out.shape[1], dtype=weights.dtype, device=x.device).scatter(1, chosen, weights)
    return torch.einsum("ted,te->td", out, share)


class Mixture(nn.Module):
    """router [E,D] and the experts."""

    def __init__(self, moe: spec.MoE, dim: int) -> None:
        super().__init__()
        self.spec = moe
        self.router = Linear(dim, moe.experts)
        self.experts = Experts(moe, dim)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.training and self.spec.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.spec.jitter, 1 + self.spec.jitter)
        tokens = x.flatten(0, -2)  # [tokens,D]
        logits = self.router(tokens).float()
        if ctx.routers is not None:
            ctx.routers.append(logits)
        weights, chosen = logits.softmax(dim=-1).topk(self.spec.top_k, dim=-1)
        if self.spec.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        out: Tensor = self.experts(tokens, chosen, weights.to(x.dtype))
        return out.view_as(x)


def balance_loss(routers: list[Tensor], top_k: int, real: Tensor | None = None) -> Tensor:
    """E · Σ share of assignments · mean probability over all layers (Fedus et al. 2021, eq. 4–6); top_k when uniform.

    `routers` are logits [tokens,E] of each layer; `real` [tokens] marks the tokens that are no padding.
    """
    logits = torch.stack(routers)  # [layers,tokens,E]
    probabilities = logits.softmax(dim=-1)
    chosen = F.one_hot(probabilities.topk(top_k, dim=-1).indices, logits.shape[-1]).sum(dim=2)  # [layers,tokens,E]
    weight = torch.ones(logits.shape[1], device=logits.device) if real is None else real.float()
    total = weight.sum() * logits.shape[0]
    share = torch.einsum("lte,t->e", chosen.float(), weight) / total
    mean = torch.einsum("lte,t->e", probabilities, weight) / total
    return (share * mean).sum() * logits.shape[-1]
