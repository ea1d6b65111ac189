"""Diagonal structured state spaces, S4D (Gu et al. 2022): one linear system for each feature, the same for every token.

    h_t = Ā h_{t-1} + B̄ x_t          y_t = 2 Re(C h_t) + D x_t          Ā = exp(Δ A), B̄ = (Ā − 1) / A (zero-order hold)

Being the same for every token it is also the convolution of a row with K_l = 2 Re(C Āˡ B̄) (§3.2), by Fourier transform.
`convolution` trains on whole rows, `recurrence` where texts are packed into one; the row-exact one (native/scan.cpp)
serves. Symbols: see shapes.py; N here are the states kept, half of `state`: the others are their conjugates.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openbook.native import scan as native
from openbook.nn import rows, spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.causal import marks
from openbook.nn.linear import Linear
from openbook.nn.scan import scan
from openbook.nn.state import Context, PerSequence, Stateful


class System(NamedTuple):
    """What happens at every token: complex turn (Ā), write (B̄) and read (C) [D,N], and skip (D) [D]."""

    turn: Tensor
    write: Tensor
    read: Tensor
    skip: Tensor


def convolution(system: System, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """x [B,T,D] and the state before [B,D,N] → y [B,T,D] and the state after, for the whole row at once."""
    tokens = x.shape[1]
    powers = torch.exp(system.turn.log().unsqueeze(-1) * torch.arange(tokens + 1, device=x.device))  # [D,N,T+1]
    kernel = 2 * torch.einsum("dn,dnl->dl", system.read * system.write, powers[..., :-1]).real  # [D,T]
    size = 2 * tokens
    spectrum = torch.fft.rfft(x.transpose(1, 2), size) * torch.fft.rfft(kernel, size)
    y = torch.fft.irfft(spectrum, size)[..., :tokens].transpose(1, 2)
    kept = 2 * torch.einsum("bdn,dnt->btd", start * system.read, powers[..., 1:]).real
    written = torch.einsum("dnt,btd->bdn", powers[..., :-1].flip(-1), x.to(powers.dtype)) * system.write
    return y + kept + system.skip * x, written + start * powers[..., -1]


def recurrence(system: System, x: Tensor, mark: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
    """The same, token after token. mark [B,T]: 0 leaves the state as it is, 1 goes on, 2 starts from nothing."""
    inputs = x.unsqueeze(-1) * system.write  # [B,T,D,N]
    turn = system.turn.expand_as(inputs)
    if mark is not None:
        flags = mark[:, :, None, None]
        turn = torch.where(flags != 0, turn, 1.0).masked_fill(flags == 2, 0.0)
        inputs = inputs * (flags != 0)
    states = scan(turn.contiguous(), inputs, start)
    return 2 * (states * system.read).real.sum(dim=-1) + system.skip * x, states[:, -1]


def exact(system: System, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor] | None:
    """The recurrence over x [B,T,D], row by row the same; the state is [B,2,N,D]. None: not for these."""
    library = native.library() if rows.usable(x) is not None else None
    if library is None:
        return None
    pairs = [torch.stack([one.real.t(), one.imag.t()]).contiguous() for one in system[:3]]  # [2,N,D]
    x, skip = x.contiguous(), system.skip.contiguous()
    last, y = start.clone(memory_format=torch.contiguous_format), torch.empty_like(x)
    held = (x, *pairs, skip, last, y)
    values = native.Turn(*x.shape, system.turn.shape[1], *(one.data_ptr() for one in held))
    if library.openbook_scan_turn(ctypes.addressof(values), torch.get_num_threads()):
        raise MemoryError("no memory for the working space of a scan")
    return y, last


class StructuredSpace(Stateful):
    """step [D] (log Δ), log_decay and frequency [D,N] (of A), read [D,N,2], skip [D], out [2D or D,D]."""

    def __init__(self, structured: spec.Structured, dim: int) -> None:
        super().__init__()
        self.spec = structured
        kept = structured.state // 2
        self.step = nn.Parameter(torch.empty(dim))
        self.log_decay = nn.Parameter(torch.empty(dim, kept))
        self.frequency = nn.Parameter(torch.empty(dim, kept))
        self.read = nn.Parameter(torch.empty(dim, kept, 2))
        self.skip = nn.Parameter(torch.empty(dim))
        self.out = Linear(dim, 2 * dim if structured.gated else dim, bias=True)
        self.act = ACTIVATIONS[structured.activation]

    def declare(self) -> PerSequence:
        return PerSequence(shapes=((2, self.log_decay.shape[1], self.log_decay.shape[0]),))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        mixed = ctx.state.recur(self.index, x, self._recur)
        out = self.out(self.act(mixed).to(x.dtype))
        if not self.spec.gated:
            return out
        value, gate = out.chunk(2, dim=-1)
        return value * activate("sigmoid", gate)

    def system(self) -> System:
        """The discrete system in fp32."""
        step = self.step.float().exp().unsqueeze(-1)
        pole = torch.complex(-self.log_decay.float().exp(), self.frequency.float())  # A, [D,N]
        if self.spec.discretisation == "zoh":
            turn = torch.exp(step * pole)
            write = (turn - 1) / pole
        else:
            turn = (1 + step * pole / 2) / (1 - step * pole / 2)
            write = step / (1 - step * pole / 2)
        return System(turn, write, torch.view_as_complex(self.read.float().contiguous()), self.skip.float())

    def _recur(
        self, x: Tensor, kept: tuple[Tensor, ...] | None, segments: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [B,T,D] and the state before [B,2,N,D] → [B,T,D] in fp32 and the state after."""
        system, x = self.system(), x.float()
        start = x.new_zeros(len(x), *self.declare().shapes[0]) if kept is None else kept[0]
        if segments is None and (done := exact(system, x, start)) is not None:
            return done[0], (done[1],)
        before = torch.complex(*start.transpose(2, 3).unbind(dim=1))  # [B,D,N]
        if segments is None:
            y, after = convolution(system, x, before)
        else:
            y, after = recurrence(system, x, marks(segments), before)
        return y, (torch.stack([after.real, after.imag], dim=1).transpose(2, 3),)
