"""The selective state space of Mamba 1 (Gu & Dao 2023, algorithm 2): parallel over the row, recurrent between steps.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t          y_t = C_t h_t + D x_t

`scan_reference` is the recurrence, one token after another; `scan` is the same as one operator, which keeps two tensors
for the backward pass. Padding (segment 0) leaves the state as it is; a new segment starts from nothing.
Symbols: see shapes.py; C channels here are `inner`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import rows, spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.linear import Linear
from openbook.nn.packed import Packed, product
from openbook.nn.state import Context, PerSequence, Stateful, marks

CHUNK = 64  # tokens, on a GPU


def scan_reference(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """All states of h_t = decay_t · h_{t-1} + inputs_t. decay and inputs [B,T,C,N], start [B,C,N] → [B,T,C,N]."""
    state, states = start, []
    for step in range(decay.shape[1]):
        state = decay[:, step] * state + inputs[:, step]
        states.append(state)
    return torch.stack(states, dim=1)


def scan(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """The same as `scan_reference`, as one operator that keeps nothing but its decays and its states."""
    if decay.shape[1] == 1:
        return decay * start.unsqueeze(1) + inputs
    return _scan(decay, inputs, start)


@torch.library.custom_op("openbook::scan", mutates_args=())
def _scan(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    return run(decay, inputs, start, CHUNK if decay.is_cuda else decay.shape[1])


def run(decay: Tensor, inputs: Tensor, start: Tensor, chunk: int) -> Tensor:
    """The recurrence in place: one after another inside a chunk, all chunks at once, then one carry between chunks.

    One chunk is least work and is right for a processor; more are fewer steps and are right for a GPU.
    """
    tokens = decay.shape[1]
    if tokens <= chunk:
        states, state = torch.empty_like(inputs), start
        for step in range(tokens):
            torch.addcmul(inputs[:, step], decay[:, step], state, out=states[:, step])
            state = states[:, step]
        return states
    extra = -tokens % chunk
    decay = F.pad(decay, (0, 0, 0, 0, 0, extra), value=1.0).unflatten(1, (-1, chunk))  # [B,T/chunk,chunk,C,N]
    inputs = F.pad(inputs, (0, 0, 0, 0, 0, extra)).unflatten(1, (-1, chunk))
    rows, none = decay.shape[:2], start.new_zeros(()).expand(start.shape[0] * decay.shape[1], *start.shape[1:])
    inside = run(decay.flatten(0, 1), inputs.flatten(0, 1), none, chunk).unflatten(0, rows)
    reach = decay.cumprod(dim=2)
    last = run(reach[:, :, -1], inside[:, :, -1], start, decay.shape[1])  # [B,T/chunk,C,N]
    carried = torch.cat([start.unsqueeze(1), last[:, :-1]], dim=1)
    return torch.addcmul(inside, reach, carried.unsqueeze(2)).flatten(1, 2)[:, :tokens].contiguous()


@_scan.register_fake
def _(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(inputs)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    decay, _, start = inputs
    ctx.save_for_backward(decay, output, start)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same recurrence, backwards in time: what a state is worth later, through the decay of the next token."""
    decay, states, start = ctx.saved_tensors
    later = F.pad(decay[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1)
    to_inputs = _scan(later, grad.flip(1), torch.zeros_like(start)).flip(1)
    before = torch.cat([start.unsqueeze(1), states[:, :-1]], dim=1)
    return to_inputs * before, to_inputs, to_inputs[:, 0] * decay[:, 0]


_scan.register_autograd(_backward, setup_context=_remember)


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

    def declare(self) -> PerSequence:
        inner = self.conv.shape[0]
        return PerSequence(shapes=((inner, self.spec.kernel - 1), (inner, self.spec.state)))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        inner, gate = self.project(x).chunk(2, dim=-1)  # [B,T,C] twice
        mixed = ctx.state.recur(self.index, inner, self._recur)
        return self.out(mixed.to(x.dtype) * activate("silu", gate))

    def _recur(
        self, inner: Tensor, kept: tuple[Tensor, ...] | None, segments: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What stands between the projections: [B,T,C] and the state before → [B,T,C] in fp32 and the state after."""
        history_shape, state_shape = ((inner.shape[0], *shape) for shape in self.declare().shapes)
        if segments is not None:
            inner = inner * (segments != 0).unsqueeze(-1)
        history = inner.new_zeros(history_shape) if kept is None else kept[0].to(inner.dtype)
        padded = torch.cat([history.transpose(1, 2), inner], dim=1)  # [B,kernel-1+T,C]
        inner = self.act(self._convolve(padded, segments))
        start = torch.zeros(state_shape, device=inner.device) if kept is None else kept[1]
        mixed, last = self._mix(inner, segments, start)
        return mixed, (self._tail(padded, segments), last)

    def _mix(self, inner: Tensor, segments: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence over inner [B,T,C], read and skipped past: [B,T,C] in fp32, and the last state [B,C,N]."""
        rank, state = self.spec.rank, self.spec.state
        step, write, read = self.select(inner).split([rank, state, state], dim=-1)
        step = activate("softplus", self._step(step))  # [B,T,C]
        if rows.usable(inner) is not None:
            decay = -activate("exp", self.log_decay.float())
            done = rows.scan(inner, step, write, read, decay, self.skip, marks(segments), start)
            assert done is not None
            return done
        decay, inputs = self._discretise(step, inner, write, segments)
        states = scan(decay, inputs, start)  # [B,T,C,N]
        mixed = torch.einsum("btcn,btn->btc", states, read.float()) + inner.float() * self.skip.float()
        return mixed, states[:, -1]

    def _step(self, step: Tensor) -> Tensor:
        """The step's linear map, summed in the dtype of `step` and moved by its bias in fp32."""
        if isinstance(self.step, Packed):
            return self.step(step)
        assert self.step.bias is not None
        return product(step, self.step.weight, None).float() + self.step.bias.float()

    def _convolve(self, padded: Tensor, segments: Tensor | None) -> Tensor:
        """Causal depth-wise convolution of [B,kernel-1+T,C] → [B,T,C] that does not look across segments."""
        kernel = self.spec.kernel
        tokens = padded.shape[1] - kernel + 1
        weight = self.conv.to(padded.dtype)
        bias = None if self.conv_bias is None else self.conv_bias.to(padded.dtype)
        if segments is None and rows.usable(padded) is None:
            out = F.conv1d(padded.transpose(1, 2), weight.unsqueeze(1), bias, groups=weight.shape[0])
            return out.transpose(1, 2)
        before = None
        if segments is not None:
            before = F.pad(segments, (kernel - 1, 0))
            before[:, : kernel - 1] = segments[:, :1]  # what was kept belongs to the row's first segment
        total = padded.new_zeros(()) if bias is None else bias
        for place in range(kernel):  # products and sums by themselves are rounded alike wherever a row lies
            seen = padded[:, place : place + tokens]
            if before is not None and segments is not None:
                seen = seen * torch.eq(before[:, place : place + tokens], segments).unsqueeze(-1)
            total = total + seen * weight[:, place]
        return total

    def _discretise(self, step: Tensor, inner: Tensor, write: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
        """decay and inputs [B,T,C,N] in fp32."""
        decay = torch.exp(step.unsqueeze(-1) * -self.log_decay.float().exp())
        inputs = (step * inner.float()).unsqueeze(-1) * write.float().unsqueeze(2)
        marked = marks(segments)
        if marked is not None:
            mark = marked[:, :, None, None]
            decay = torch.where(mark != 0, decay, 1.0).masked_fill(mark == 2, 0.0)
            inputs = inputs * (mark != 0)
        return decay, inputs

    def _tail(self, padded: Tensor, segments: Tensor | None) -> Tensor:
        """The last kernel-1 real inputs of each row, [B,C,kernel-1]."""
        keep = self.spec.kernel - 1
        if segments is None:
            return padded[:, padded.shape[1] - keep :].transpose(1, 2)
        places = torch.arange(1, segments.shape[1] + 1, device=segments.device)
        ends = torch.where(segments != 0, places, 0).amax(dim=1)  # [B]
        index = ends.unsqueeze(1) + torch.arange(keep, device=ends.device)  # [B,kernel-1]
        return padded.gather(1, index.unsqueeze(-1).expand(-1, -1, padded.shape[2])).transpose(1, 2)
