"""Feed-forward layers: plain (Vaswani et al. 2017 §3.3) and gated (Shazeer 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import spec
from openbook.nn.activation import ACTIVATIONS
from openbook.nn.linear import Fused, Linear, joint
from openbook.nn.state import Context


def gated(mlp: spec.MLP, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · (up + offset), both cut at the limit if there is one."""
    if mlp.limit is not None:
        gate, up = gate.clamp(max=mlp.limit), up.clamp(-mlp.limit, mlp.limit)
    return ACTIVATIONS[mlp.activation](gate) * (up + mlp.offset if mlp.offset else up)


class FeedForward(nn.Module):
    """up [F,D], down [D,F], and gate [F,D] if gated."""

    def __init__(self, mlp: spec.MLP, dim: int) -> None:
        super().__init__()
        self.spec = mlp
        self.gate = Linear(dim, mlp.hidden, mlp.bias) if mlp.gated else None
        self.up = Linear(dim, mlp.hidden, mlp.bias)
        self.down = Linear(mlp.hidden, dim, mlp.bias)
        self.act = ACTIVATIONS[mlp.activation]
        self.fused: Fused | None = None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:  # noqa: ARG002
        if self.gate is None:
            hidden = self.act(self.up(x))
        else:
            gate, up = joint(x, (self.gate, self.up), self.fused)
            hidden = gated(self.spec, gate, up)  # [B,T,F]
        if self.spec.dropout and self.training:
            hidden = F.dropout(hidden, self.spec.dropout)
        return self.down(hidden)

    def fuse(self) -> None:
        """Hold gate and up as one matrix."""
        if self.gate is not None:
            self.fused = Fused([self.gate, self.up])
