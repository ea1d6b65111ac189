"""Experts (Shazeer et al. 2017; Jiang et al. 2024 §2), stacked [E,...] from the start, and one all tokens share.

`experts_reference` runs every expert on every token and weighs; the fast path sorts the tokens by expert and runs one
grouped product per matrix, with fixed shapes and no host sync. Nothing is dropped but in training, by a capacity. What
goes where is routing.py's. Symbols: see shapes.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import packed, spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.grouped import grouped
from openbook.nn.linear import Linear, cast
from openbook.nn.mlp import FeedForward, gated
from openbook.nn.packed import PackedStack
from openbook.nn.routing import Decision, pick, route, within_capacity
from openbook.nn.state import Context


class Experts(nn.Module):
    """E feed-forward networks: gate and up [E,F,D], down [E,D,F], and biases [E,F], [E,F], [E,D] if the spec has them.

    A shard holds some of them, from number `first` on, or a part of each one's hidden features.
    """

    def __init__(self, moe: spec.MoE, dim: int) -> None:
        super().__init__()
        self.spec, mlp, hidden = moe, moe.expert, moe.expert.hidden
        self.total, self.first = moe.experts, 0
        self.gate = _stack(moe.experts, hidden, dim) if mlp.gated else None
        self.up = _stack(moe.experts, hidden, dim)
        self.down = _stack(moe.experts, dim, hidden)
        self.gate_bias = _stack(moe.experts, hidden) if mlp.gated and mlp.bias else None
        self.up_bias = _stack(moe.experts, hidden) if mlp.bias else None
        self.down_bias = _stack(moe.experts, dim) if mlp.bias else None
        self.act = ACTIVATIONS[mlp.activation]

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor, kept: Tensor | None = None) -> Tensor:
        """x [tokens,D], chosen experts, their weights, and which of them count, [tokens,k] each → [tokens,D]."""
        held, expert = self.up.shape[0], chosen.flatten()
        if held < self.total:  # who is held elsewhere comes last, in no group
            expert = expert - self.first
            expert = torch.where((expert >= 0) & (expert < held), expert, held)
        if kept is not None:
            expert = torch.where(kept.flatten(), expert, held)
        order = expert.argsort(stable=True)  # [tokens·k], grouped by expert
        counts = torch.zeros(held + 1, dtype=torch.int32, device=x.device)
        counts.index_add_(0, expert, torch.ones_like(order, dtype=torch.int32))
        ends = counts[:held].cumsum(0).to(torch.int32)
        share = weights.flatten()[order].unsqueeze(-1)  # [tokens·k,1]
        rows = x[order // chosen.shape[1]]
        if self.spec.routing.input_scaled:
            rows = rows * share
        out = self.run(rows, expert[order], ends)
        if not self.spec.routing.input_scaled:
            out = out * share
        # Back to token order first, then one sum over k: the order of additions does not depend on batch mates.
        return torch.empty_like(out).index_copy(0, order, out).unflatten(0, chosen.shape).sum(dim=1)

    def take(self, x: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """x [tokens,D], the tokens that each expert picked [E,C] and their weights [E,C] → [tokens,D]."""
        held, most = self.up.shape[0], tokens.shape[1]
        mine = slice(self.first, self.first + held)
        ends = torch.arange(1, held + 1, dtype=torch.int32, device=x.device) * most
        expert = torch.arange(held, device=x.device).repeat_interleave(most)
        places = tokens[mine].flatten()
        out = self.run(x[places], expert, ends) * weights[mine].flatten().unsqueeze(-1)
        return torch.zeros_like(x).index_add_(0, places, out)

    def run(self, rows: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """Rows [n,D] through their experts, expert e's those from ends[e-1] to ends[e] → [n,D]; `expert` [n] is who."""
        up = _biased(through(self.up, rows, ends), self.up_bias, expert)
        if self.gate is None:
            hidden = self.act(up)
        else:
            gate = _biased(through(self.gate, rows, ends), self.gate_bias, expert)
            hidden = gated(self.spec.expert, gate, up)  # [n,F]
        if self.spec.expert.dropout and self.training:
            hidden = F.dropout(hidden, self.spec.expert.dropout)
        return _biased(through(self.down, hidden, ends), self.down_bias, expert)


def _stack(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def _biased(rows: Tensor, bias: Tensor | None, expert: Tensor) -> Tensor:
    """Rows [n,F] plus the bias [E,F] of each one's expert; a row of no expert held here (number E) gets none."""
    if bias is None:
        return rows
    whole = torch.cat([bias, bias.new_zeros(1, bias.shape[1])])
    return rows + cast(whole, rows.dtype)[expert]


def through(stacked: Tensor | PackedStack, rows: Tensor, ends: Tensor) -> Tensor:
    """Each group's rows [n,D] times the matrix of its expert, [n,F]; the one choice of how."""
    if isinstance(stacked, PackedStack):
        return stacked.grouped(rows, ends)
    exact = packed.grouped(rows, stacked, ends)
    return grouped(rows, cast(stacked, rows.dtype), ends) if exact is None else exact


def experts_reference(experts: Experts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Every expert on every token, weighed by the router: what `Experts.forward` must equal."""

    def map_(product: str, inputs: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.einsum(product, inputs, matrix)
        return out if bias is None else out + bias

    share = torch.zeros(x.shape[0], len(experts.up), dtype=weights.dtype, device=x.device)
    share = share.scatter(1, chosen, weights)  # [tokens,E]
    rows = x.unsqueeze(1).expand(-1, len(experts.up), -1)  # [tokens,E,D]
    if experts.spec.routing.input_scaled:
        rows = rows * share.unsqueeze(-1)
    hidden = map_("ted,efd->tef", rows, experts.up, experts.up_bias)
    if experts.gate is None:
        hidden = experts.act(hidden)
    else:
        hidden = gated(experts.spec.expert, map_("ted,efd->tef", rows, experts.gate, experts.gate_bias), hidden)
    out = map_("tef,edf->ted", hidden, experts.down, experts.down_bias)
    share = share != 0 if experts.spec.routing.input_scaled else share
    return torch.einsum("ted,te->td", out, share.to(out.dtype))


class Mixture(nn.Module):
    """router [E,D], the experts, correction [E], and the shared expert with its gate [1,D], where the spec has them."""

    def __init__(self, moe: spec.MoE, dim: int) -> None:
        super().__init__()
        self.spec = moe
        self.router = Linear(dim, moe.experts, moe.routing.bias)
        # Moved by training (train/experts.py), not by an optimiser.
        self.correction = nn.Parameter(torch.empty(moe.experts), False) if moe.routing.correction else None
        self.experts = Experts(moe, dim)
        self.shared = FeedForward(moe.shared, dim) if moe.shared is not None else None
        self.shared_gate = Linear(dim, 1) if moe.shared_gate else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        tokens = x.flatten(0, -2)  # [tokens,D]
        seen = tokens.float()  # routers always compute in fp32 (Fedus et al. 2021, §2.4)
        if self.training and self.spec.jitter:
            seen = seen * torch.empty_like(seen).uniform_(1 - self.spec.jitter, 1 + self.spec.jitter)
        out = self.mix(tokens, self.router(seen), ctx).view_as(x)
        if self.shared is None:
            return out
        shared = self.shared(x, ctx)
        if self.shared_gate is not None:
            shared = activate("sigmoid", self.shared_gate(x)) * shared
        return out + shared

    def mix(self, tokens: Tensor, logits: Tensor, ctx: Context) -> Tensor:
        """What the experts make of tokens [tokens,D], by the router's logits [tokens,E] → [tokens,D]."""
        routed: Decision
        if self.spec.routing.choice == "expert":
            picked = routed = pick(self.spec, logits, self.real(ctx, logits))
            out: Tensor = self.experts.take(tokens, picked.tokens, picked.weights.to(tokens.dtype))
        else:
            chosen = route(self.spec, logits, self.correction)
            if self.training and self.spec.capacity is not None:
                chosen = within_capacity(self.spec, chosen, self.real(ctx, logits))
            routed = chosen
            out = self.experts(tokens, chosen.chosen, chosen.weights.to(tokens.dtype), chosen.kept)
        if ctx.routers is not None:
            ctx.routers.append(routed)
        return out

    @staticmethod
    def real(ctx: Context, logits: Tensor) -> Tensor:
        """Which of the tokens are no padding, [tokens] boolean."""
        segments = ctx.state.segments
        return torch.ones_like(logits[:, 0], dtype=torch.bool) if segments is None else segments.flatten() != 0
