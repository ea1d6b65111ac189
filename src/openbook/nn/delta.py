"""The gated delta rule (Yang et al. 2024): a state that decays and whose values are corrected, key by key.

    S_t = α_t S_{t-1} + k_t u_tᵀ      u_t = β_t (v_t − α_t S_{t-1}ᵀ k_t)      y_t = S_tᵀ q_t      S [K,V] of each head

`recurrence` is the definition, `blocks` the same by chunks of tokens (§3.3): within one the corrections solve a
triangular system, between them stands the state. Where rows must be exact native/scan.cpp runs the recurrence.
Symbols: see shapes.py; G heads of queries and keys, H of values.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from openbook.native import scan as native
from openbook.nn import rows, spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.causal import convolve, marks
from openbook.nn.dual import cut, padded, spans
from openbook.nn.linear import Linear
from openbook.nn.norm import Normalise, normalise
from openbook.nn.scan import chain
from openbook.nn.state import Context, PerSequence, Stateful

CHUNK = 64  # tokens
EPS = 1e-6  # of the squared length of queries and keys


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rate: Tensor, mark: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: y [B,T,H,V] and the last state [B,H,K,V], in fp32.

    q and k [B,T,G,K], v [B,T,H,V], log_decay (log α, not above zero) and rate (β) [B,T,H], start [B,H,K,V]. mark [B,T]:
    0 leaves the state as it is, 1 goes on, 2 starts from nothing.
    """
    size = v.shape[2] // k.shape[2]
    q, k = (one.repeat_interleave(size, dim=2) for one in (q, k))  # [B,T,H,K]
    decay = log_decay.exp()
    if mark is not None:
        flags = mark.unsqueeze(-1)
        decay = torch.where(flags != 0, decay, 1.0).masked_fill(flags == 2, 0.0)
        rate = rate * (flags != 0)
    state, out = start, []
    for t in range(v.shape[1]):
        state = state * decay[:, t, :, None, None]
        seen = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], rate[:, t].unsqueeze(-1) * (v[:, t] - seen))
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(out, dim=1), state


def blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    mark: Tensor | None,
    start: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same as `recurrence`, chunk by chunk."""
    tokens, size = v.shape[1], v.shape[2] // k.shape[2]
    chunk, extra = cut(tokens, chunk)
    if mark is not None:
        real = (mark != 0).unsqueeze(-1)
        log_decay, rate = log_decay * real, rate * real
        mark = torch.cat([mark, mark.new_ones(len(mark), extra)], dim=1)
    q, k, v, log_decay, rate = (padded(one, extra) for one in (q, k, v, log_decay, rate))
    between, into, out, through = spans(log_decay, mark, chunk)
    q, k, v = (one.unflatten(1, (-1, chunk)).permute(0, 1, 3, 2, 4) for one in (q, k, v))  # [B,c,G or H,L,K or V]
    rate = rate.unflatten(1, (-1, chunk)).transpose(2, 3).unsqueeze(-1)  # [B,c,H,L,1]
    mixed = (q @ k.transpose(-1, -2)).repeat_interleave(size, dim=2) * between  # [B,c,H,L,L]
    alike = (k @ k.transpose(-1, -2)).repeat_interleave(size, dim=2) * between
    q, k = (one.repeat_interleave(size, dim=2) for one in (q, k))  # [B,c,H,L,K]
    system = (rate * alike).tril(-1) + torch.eye(chunk, device=v.device)
    into, out = into.unsqueeze(-1), out.unsqueeze(-1)
    solved = torch.linalg.solve_triangular(system, torch.cat([rate * v, rate * into * k], dim=-1), upper=False)
    fresh, seen = solved.split([v.shape[-1], k.shape[-1]], dim=-1)  # corrections are fresh − seen · state
    keys = (out * k).transpose(-1, -2)  # [B,c,H,K,L]
    kept = through[..., None, None] * torch.eye(k.shape[-1], device=v.device) - keys @ seen  # [B,c,H,K,K]
    after = chain(kept, keys @ fresh, start)  # [B,c,H,K,V]
    states = torch.cat([start.unsqueeze(1), after[:, :-1]], dim=1)
    y = (into * q) @ states + mixed @ (fresh - seen @ states)
    return y.permute(0, 1, 3, 2, 4).flatten(1, 2)[:, :tokens], after[:, -1]


def exact(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rate: Tensor, mark: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The recurrence, row by row the same; None: not for these."""
    library = native.library() if rows.usable(v) is not None else None
    if library is None:
        return None
    decay = activate("exp", log_decay)
    held = [one.float().contiguous() for one in (q, k, v, decay, rate)]
    flags = None if mark is None else mark.to(torch.int8).contiguous()
    last, y = start.float().clone(memory_format=torch.contiguous_format), torch.empty_like(held[2])
    values = native.Delta(*v.shape[:3], k.shape[2], k.shape[3], v.shape[3], *(one.data_ptr() for one in held))
    values.mark = None if flags is None else flags.data_ptr()
    values.kept, values.y = last.data_ptr(), y.data_ptr()
    if library.openbook_scan_delta(ctypes.addressof(values), torch.get_num_threads()):
        raise MemoryError("no memory for the working space of a scan")
    return y, last


class DeltaRule(Stateful):
    """q and k [GK,D], v and gate [HV,D], rate and step [H,D], conv [2GK+HV,kernel], shift and log_decay [H], norm [V],
    out [D,HV]."""

    def __init__(self, delta: spec.GatedDelta, dim: int) -> None:
        super().__init__()
        self.spec = delta
        keys, values = delta.heads * delta.key_dim, delta.value_heads * delta.value_dim
        self.sizes = [keys, keys, values]
        self.q = Linear(dim, keys)
        self.k = Linear(dim, keys)
        self.v = Linear(dim, values)
        self.gate = Linear(dim, values)
        self.rate = Linear(dim, delta.value_heads)
        self.step = Linear(dim, delta.value_heads)
        self.conv = nn.Parameter(torch.empty(sum(self.sizes), delta.kernel))
        self.shift = nn.Parameter(torch.empty(delta.value_heads))
        self.log_decay = nn.Parameter(torch.empty(delta.value_heads))
        self.norm = Normalise(delta.norm, delta.value_dim)
        self.out = Linear(values, dim)
        self.act = ACTIVATIONS[delta.activation]

    def declare(self) -> PerSequence:
        state = (self.spec.value_heads, self.spec.key_dim, self.spec.value_dim)
        return PerSequence(shapes=((sum(self.sizes), self.spec.kernel - 1), state))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        inside = torch.cat([part(x) for part in (self.q, self.k, self.v, self.rate, self.step)], dim=-1)
        mixed = ctx.state.recur(self.index, inside, self._recur).unflatten(-1, (-1, self.spec.value_dim))
        gate = activate("silu", self.gate(x).float())
        return self.out((self.norm(mixed).flatten(-2) * gate).to(x.dtype))

    def _recur(
        self, inside: Tensor, kept: tuple[Tensor, ...] | None, segments: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B,T,2GK+HV+2H] and the state before → [B,T,HV] in fp32 and the state after: last inputs and S [B,H,K,V]."""
        heads = self.spec.value_heads
        inner, rate, step = inside.split([sum(self.sizes), heads, heads], dim=-1)
        inner, tail = convolve(inner, self.conv, None, None if kept is None else kept[0], segments)
        q, k, v = self.act(inner).split(self.sizes, dim=-1)
        q, k = (self._unit(one.unflatten(-1, (self.spec.heads, -1)).float()) for one in (q, k))
        v = v.unflatten(-1, (heads, -1)).float()
        step = activate("softplus", step.float() + self.shift.float())
        log_decay = -activate("exp", self.log_decay.float()) * step  # [B,T,H]
        rate = activate("sigmoid", rate.float())
        start = torch.zeros(len(v), *self.declare().shapes[1], device=v.device) if kept is None else kept[1]
        given = (q * self.spec.key_dim**-0.5, k, v, log_decay, rate, marks(segments), start)
        y, last = exact(*given) or blocks(*given)
        return y.flatten(2), (tail, last)

    def _unit(self, x: Tensor) -> Tensor:
        """Vectors [..,K] of length one: an RMS norm divides by √K less."""
        size = x.shape[-1]
        ones = torch.full((size,), size**-0.5, device=x.device)
        return normalise(spec.Norm(eps=EPS / size), x, ones, None)
