"""State space duality, the mixer of Mamba 2 (Dao & Gu 2024): one decay for each head, read as attention in blocks.

    h_t = exp(Δ_t a) h_{t-1} + Δ_t x_t B_tᵀ          y_t = h_t C_t + D x_t          h [P,N] of each head

`blocks` is §6 of the paper: within a chunk the masked matrix product (C Bᵀ ∘ L) X, between chunks the states. `scan.py`
has the recurrence, token after token, which serves: what a row gets there depends on this row alone. Symbols: see
shapes.py; C channels are heads · P (`head_dim`), G groups of heads share B and C of the paper (`write`, `read`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbook.nn import rows, spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.causal import convolve, marks
from openbook.nn.linear import Linear
from openbook.nn.norm import Normalise, normalise
from openbook.nn.scan import scan, selective
from openbook.nn.state import Context, PerSequence, Stateful

CHUNK = 64  # tokens


def spans(log_decay: Tensor, mark: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How much of what one token wrote is left at another, in each chunk; log_decay [B,T,H], T a multiple of `chunk`.

    Between its tokens [B,T/chunk,H,chunk,chunk] (later, earlier), from before it to each token [B,T/chunk,H,chunk],
    from each token to its end, and through it [B,T/chunk,H]. Nothing passes a token whose mark [B,T] is 2.
    """
    log_decay = log_decay.unflatten(1, (-1, chunk)).transpose(2, 3)  # [B,c,H,L]
    sums = log_decay.cumsum(dim=-1)
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=sums.device).tril()
    gap = sums.unsqueeze(-1) - sums.unsqueeze(-2)
    if mark is None:
        between = gap.masked_fill(~seen, float("-inf")).exp()
        return between, sums.exp(), (sums[..., -1:] - sums).exp(), sums[..., -1].exp()
    run = (mark == 2).unflatten(1, (-1, chunk)).cumsum(dim=-1).unsqueeze(2)  # [B,c,1,L]
    same = run.unsqueeze(-1) == run.unsqueeze(-2)
    between = gap.masked_fill(~(seen & same), float("-inf")).exp()
    into = sums.masked_fill(run != 0, float("-inf")).exp()
    out = (sums[..., -1:] - sums).masked_fill(run != run[..., -1:], float("-inf")).exp()
    return between, into, out, into[..., -1]


def cut(tokens: int, chunk: int) -> tuple[int, int]:
    """How a row is cut: tokens of a chunk, and how many are missing behind.

    For the compiler there are always two chunks at least, so that no length is a special one.
    """
    if torch.compiler.is_compiling():
        return chunk, -tokens % chunk + chunk
    chunk = min(chunk, tokens)
    return chunk, -tokens % chunk


def padded(tensor: Tensor, extra: int) -> Tensor:
    """[B,T,..] with `extra` zeros behind."""
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], extra, *tensor.shape[2:])], dim=1)


def blocks(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    mark: Tensor | None,
    start: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products: y [B,T,H,P] without the skip, and the last state [B,H,P,N], in fp32.

    x [B,T,H,P], step [B,T,H], write and read [B,T,G,N], decay [H] below zero, start [B,H,P,N]; marks as in scan.py.
    """
    tokens, groups = x.shape[1], write.shape[2]
    size, (chunk, extra) = x.shape[2] // groups, cut(tokens, chunk)
    if mark is not None:
        step = step * (mark != 0).unsqueeze(-1)
        mark = torch.cat([mark, mark.new_ones(len(mark), extra)], dim=1)
    x, step, write, read = (padded(one.float(), extra) for one in (x, step, write, read))
    between, into, out, through = spans(step * decay, mark, chunk)
    x = (x * step.unsqueeze(-1)).unflatten(1, (-1, chunk)).permute(0, 1, 3, 2, 4)  # [B,c,H,L,P]
    write, read = (one.unflatten(1, (-1, chunk)).permute(0, 1, 3, 2, 4) for one in (write, read))  # [B,c,G,L,N]
    scores = (read @ write.transpose(-1, -2)).repeat_interleave(size, dim=2)  # [B,c,H,L,L]
    inside = (scores * between) @ x
    write, read = (one.repeat_interleave(size, dim=2) for one in (write, read))  # [B,c,H,L,N]
    written = (x * out.unsqueeze(-1)).transpose(-1, -2) @ write  # [B,c,H,P,N]
    start, kept = start.float(), through[..., None, None].expand_as(written)
    after = scan(kept.flatten(2, 3), written.flatten(2, 3), start.flatten(1, 2)).view_as(written)
    states = torch.cat([start.unsqueeze(1), after[:, :-1]], dim=1)  # before each chunk, [B,c,H,P,N]
    carried = (read @ states.transpose(-1, -2)) * into.unsqueeze(-1)
    return (inside + carried).permute(0, 1, 3, 2, 4).flatten(1, 2)[:, :tokens], after[:, -1]


class DualSpace(Stateful):
    """project [2C+2GN+H,D], conv [C+2GN,kernel], step [H], log_decay [H], skip [H], norm [C], out [D,C]."""

    def __init__(self, dual: spec.StateSpaceDual, dim: int) -> None:
        super().__init__()
        self.spec = dual
        inner, shared = dual.heads * dual.head_dim, dual.groups * dual.state
        self.sizes = [inner, shared, shared]
        self.project = Linear(dim, 2 * (inner + shared) + dual.heads, dual.bias)
        self.conv = nn.Parameter(torch.empty(inner + 2 * shared, dual.kernel))
        self.conv_bias = nn.Parameter(torch.empty(inner + 2 * shared)) if dual.conv_bias else None
        self.step = nn.Parameter(torch.empty(dual.heads))
        self.log_decay = nn.Parameter(torch.empty(dual.heads))
        self.skip = nn.Parameter(torch.empty(dual.heads))
        self.norm = None if dual.norm is None else Normalise(dual.norm, inner)
        self.out = Linear(inner, dim, dual.bias)
        self.act = ACTIVATIONS[dual.activation]

    def declare(self) -> PerSequence:
        return PerSequence(shapes=((sum(self.sizes), self.spec.kernel - 1), (self.spec.state, self.sizes[0])))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        gate, inside = self.project(x).split([self.sizes[0], sum(self.sizes) + self.spec.heads], dim=-1)
        mixed = ctx.state.recur(self.index, inside, self._recur) * activate("silu", gate.float())
        return self.out(self._normalised(mixed).to(x.dtype))

    def _normalised(self, mixed: Tensor) -> Tensor:
        """Gated first, then each group by itself (Dao & Gu 2024, §7.1)."""
        if self.norm is None:
            return mixed
        if self.spec.groups == 1:
            return self.norm(mixed)
        parts = mixed.unflatten(-1, (self.spec.groups, -1))
        alone = normalise(self.norm.spec, parts, None, None).flatten(-2)
        return alone if self.norm.weight is None else alone * self.norm.weight.float()

    def _recur(
        self, inside: Tensor, kept: tuple[Tensor, ...] | None, segments: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B,T,C+2GN+H] and the state before → [B,T,C] in fp32 and the state after: its last inputs and h [B,N,C]."""
        inner, step = inside.split([sum(self.sizes), self.spec.heads], dim=-1)
        inner, tail = convolve(inner, self.conv, self.conv_bias, None if kept is None else kept[0], segments)
        x, write, read = self.act(inner).split(self.sizes, dim=-1)
        write, read = (one.unflatten(-1, (self.spec.groups, -1)) for one in (write, read))  # [B,T,G,N]
        step = activate("softplus", step.float() + self.step.float())  # [B,T,H]
        if self.spec.step_least or self.spec.step_most is not None:
            step = step.clamp(self.spec.step_least, self.spec.step_most)
        start = x.new_zeros(len(x), self.spec.state, x.shape[2], dtype=torch.float32) if kept is None else kept[1]
        y, last = self._mix(x, step, write, read, marks(segments), start)
        return y, (tail, last)

    def _mix(
        self, x: Tensor, step: Tensor, write: Tensor, read: Tensor, mark: Tensor | None, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The one choice: token after token where rows must be exact, else in blocks."""
        size = self.spec.head_dim
        decay = -activate("exp", self.log_decay.float())
        if rows.usable(x) is not None or x.shape[1] == 1:
            step, decay, skip = (one.repeat_interleave(size, dim=-1) for one in (step, decay, self.skip))
            return selective(x, step, write, read, decay.unsqueeze(0), skip, mark, start)
        heads = x.unflatten(-1, (-1, size)).float()  # [B,T,H,P]
        before = start.transpose(1, 2).unflatten(1, (-1, size))  # [B,H,P,N]
        y, last = blocks(heads, step, write, read, decay, mark, before)
        y = y + heads * self.skip.float().unsqueeze(-1)
        return y.flatten(2), last.flatten(1, 2).transpose(1, 2)
