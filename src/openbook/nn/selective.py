"""The selective state space of Mamba 1 (Gu & Dao 2023, algorithm 2): parallel over the row, recurrent between steps.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t          y_t = C_t h_t + D x_t

The recurrence itself is in scan.py. Padding (segment 0) leaves the state as it is; a new segment starts from nothing.
Symbols: see shapes.py; C channels here are `inner`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbook.nn import spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.causal import convolve, marks
from openbook.nn.linear import Linear
from openbook.nn.norm import Normalise
from openbook.nn.packed import Packed, RowLinear, product
from openbook.nn.scan import selective as scan
from openbook.nn.state import Context, PerSequence, Stateful


class StateSpace(Stateful):
    """project [2C,D], conv [C,kernel], select [R+2N,C], step [C,R], log_decay [C,N], skip [C], out [D,C]."""

    def __init__(self, selective: spec.Selective, dim: int) -> None:
        super().__init__()
        inner, state, rank = selective.inner, selective.state, selective.rank
        self.spec = selective
        self.project = Linear(dim, 2 * inner, selective.bias)
        self.conv = nn.Parameter(torch.empty(inner, selective.kernel))
        self.conv_bias = nn.Parameter(torch.empty(inner)) if selective.conv_bias else None
        self.select = Linear(inner, rank + 2 * state)
        self.step = Linear(rank, inner, bias=True)
        self.log_decay = nn.Parameter(torch.empty(inner, state))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, dim, selective.bias)
        self.act = ACTIVATIONS[selective.activation]
        norm = selective.norm
        self.step_norm = None if norm is None else Normalise(norm, rank)
        self.write_norm = None if norm is None else Normalise(norm, state)
        self.read_norm = None if norm is None else Normalise(norm, state)

    def declare(self) -> PerSequence:
        inner = self.conv.shape[0]
        return PerSequence(shapes=((inner, self.spec.kernel - 1), (self.spec.state, inner)))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        inner, gate = self.project(x).chunk(2, dim=-1)  # [B,T,C] twice
        mixed = ctx.state.recur(self.index, inner, self._recur)
        return self.out(mixed.to(x.dtype) * activate("silu", gate))

    def _recur(
        self, inner: Tensor, kept: tuple[Tensor, ...] | None, segments: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What stands between the projections: [B,T,C] and the state before → [B,T,C] in fp32 and the state after."""
        inner, tail = convolve(inner, self.conv, self.conv_bias, None if kept is None else kept[0], segments)
        shape = (inner.shape[0], self.spec.state, inner.shape[2])
        start = torch.zeros(shape, device=inner.device) if kept is None else kept[1]
        mixed, last = self._mix(self.act(inner), segments, start)
        return mixed, (tail, last)

    def _mix(self, inner: Tensor, segments: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence over inner [B,T,C], read and skipped past: [B,T,C] in fp32, and the last state [B,N,C]."""
        rank, state = self.spec.rank, self.spec.state
        step, write, read = self.select(inner).split([rank, state, state], dim=-1)
        if self.step_norm is not None and self.write_norm is not None and self.read_norm is not None:
            step, write, read = self.step_norm(step), self.write_norm(write), self.read_norm(read)
        step = activate("softplus", self._step(step))  # [B,T,C]
        decay = -activate("exp", self.log_decay.float()).t()
        return scan(inner, step, write.unsqueeze(2), read.unsqueeze(2), decay, self.skip, marks(segments), start)

    def _step(self, step: Tensor) -> Tensor:
        """The step's linear map, summed in the dtype of `step` and moved by its bias in fp32."""
        if isinstance(self.step, Packed | RowLinear) or self.step._forward_hooks:  # an adapter stands on the module
            return self.step(step).float()
        assert self.step.bias is not None
        return product(step, self.step.weight, None).float() + self.step.bias.float()
