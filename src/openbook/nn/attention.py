"""Self-attention with one, some or all key/value heads, and attention over an encoder's output.

Vaswani et al. 2017 §3.2; grouped queries, Ainslie et al. 2023. The heads are counted from the weights, so that a
tensor-parallel shard is just a smaller layer. Symbols: see shapes.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbook.nn import spec
from openbook.nn.activation import activate
from openbook.nn.linear import Fused, Linear, joint
from openbook.nn.norm import Normalise
from openbook.nn.rope import rotate, sharpen
from openbook.nn.state import Context, PerSource, PerToken, Scores, Stateful


class SelfAttention(Stateful):
    """q [H·K,D], k and v [G·K,D], out [D,H·K]; sinks [H] and gate [H·K,D] if the spec has them.

    q_norm and k_norm: [K], or [H,K] and [G,K], or [H·K] and [G·K], as the spec's `norm` says.
    """

    def __init__(self, attention: spec.Attention, dim: int, mask: int, rope: int | None) -> None:
        super().__init__()
        heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
        self.spec = attention
        self.rope = rope
        self.neighbours = attention.rope is not None and attention.rope.neighbours
        self.scores = Scores(
            pattern=attention.pattern,
            mask=mask,
            scale=size**-0.5 if attention.scale is None else attention.scale,
            softcap=attention.softcap,
            bias=attention.relative,
        )
        self.q = Linear(dim, heads * size, attention.bias)
        self.k = Linear(dim, kv_heads * size, attention.bias)
        self.v = Linear(dim, kv_heads * size, attention.bias)
        self.out = Linear(heads * size, dim, attention.out_bias)
        norm = spec.QueryKeyNorm(norm=attention.norm) if isinstance(attention.norm, spec.Norm) else attention.norm
        self.norm = norm
        self.q_norm = None if norm is None else _norm(norm, heads, size)
        self.k_norm = None if norm is None else _norm(norm, kv_heads, size)
        self.sinks = nn.Parameter(torch.empty(heads)) if attention.sinks else None
        self.gate = Linear(dim, heads * size, attention.bias) if attention.gate else None
        self.fused: Fused | None = None

    def declare(self) -> PerToken:
        size = self.spec.head_dim
        kv_heads = self.k.shape[0] // size
        return PerToken(kv_heads=kv_heads, key_dim=size, value_dim=size, window=self.spec.pattern.reach)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        size = self.spec.head_dim
        flat = joint(x, (self.q, self.k, self.v), self.fused)
        if (most := self.spec.clip) is not None:
            flat = tuple(part.clamp(-most, most) for part in flat)
        q, k, v = (part.unflatten(-1, (-1, size)) for part in flat)  # [B,T,H,K] and [B,T,G,K] twice
        if self.norm is not None and not self.norm.rotated:
            q, k = self._normalised(q, k)
        if self.rope is not None:
            cos, sin = ctx.rotary[self.rope]
            q, k = rotate(q, cos, sin, self.neighbours), rotate(k, cos, sin, self.neighbours)
        if self.norm is not None and self.norm.rotated:
            q, k = self._normalised(q, k)
        if self.spec.temperature is not None:
            q = sharpen(q, ctx.state.positions, self.spec.temperature)
        mixed = ctx.state.attend(self.index, q, k, v, self.rule()).flatten(-2)  # [B,T,H·K]
        return self.out(mixed if self.gate is None else mixed * activate("sigmoid", self.gate(x)))

    def _normalised(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert self.norm is not None
        assert self.q_norm is not None
        assert self.k_norm is not None
        if self.norm.over == "width":
            return self.q_norm(q.flatten(-2)).view_as(q), self.k_norm(k.flatten(-2)).view_as(k)
        return self.q_norm(q), self.k_norm(k)

    @property
    def common(self) -> bool:
        """Whether it is what native blocks do: q and k normed (not clipped and all heads at once), then turned."""
        norm = self.norm
        first = norm is None or not (norm.rotated or (norm.over == "width" and self.spec.clip is not None))
        return first and self.gate is None and self.spec.temperature is None

    def rule(self) -> Scores:
        """How scores are made now."""
        scores = self.scores if self.sinks is None else self.scores._replace(sinks=self.sinks)
        return scores._replace(dropout=self.spec.dropout) if self.training else scores

    def fuse(self) -> None:
        """Hold q, k and v as one matrix."""
        self.fused = Fused([self.q, self.k, self.v])


def _norm(norm: spec.QueryKeyNorm, heads: int, size: int) -> Normalise:
    if norm.over == "width":
        return Normalise(norm.norm, heads * size)
    return Normalise(norm.norm, size, heads if norm.over == "heads" else None)


class SourceAttention(Stateful):
    """Attention over the encoder's output [B,S,D]: q [H·K,D], k and v [G·K,D], out [D,H·K]."""

    def __init__(self, attention: spec.CrossAttention, dim: int, source_dim: int) -> None:
        super().__init__()
        heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
        self.spec = attention
        self.scale = size**-0.5 if attention.scale is None else attention.scale
        self.q = Linear(dim, heads * size, attention.bias)
        self.k = Linear(source_dim, kv_heads * size, attention.bias)
        self.v = Linear(source_dim, kv_heads * size, attention.bias)
        self.out = Linear(heads * size, dim, attention.out_bias)

    def declare(self) -> PerSource:
        size = self.spec.head_dim
        return PerSource(kv_heads=self.k.shape[0] // size, key_dim=size, value_dim=size)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, self.spec.head_dim))  # [B,T,H,K]
        dropout = self.spec.dropout if self.training else 0.0
        mixed = ctx.state.look(self.index, q, ctx.source, self.keys, self.scale, dropout)
        return self.out(mixed.flatten(-2))

    def keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B,S,G,K] of the encoder's output [B,S,D]."""
        size = self.spec.head_dim
        return self.k(hidden).unflatten(-1, (-1, size)), self.v(hidden).unflatten(-1, (-1, size))
