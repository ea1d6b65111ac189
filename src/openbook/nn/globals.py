"""Attention in a window, beside global tokens that see all and are seen by all (Beltagy et al. 2020, §3.1).

A token that is not global mixes, by q, k and v, what its window reaches and the global tokens. A global token mixes the
whole row by projections of its own. Both are linear in the row's length. Symbols: M global tokens; see shapes.py.
"""

from __future__ import annotations

from torch import Tensor

from openbook.nn import spec
from openbook.nn.attend import mix
from openbook.nn.linear import Linear
from openbook.nn.marks import pick, put
from openbook.nn.state import Context, PerToken, Scores, Stateful


class WindowAndGlobal(Stateful):
    """q, k, v and global_q, global_k, global_v [H·K,D], out [D,H·K]."""

    def __init__(self, attention: spec.GlobalAttention, dim: int, mask: int) -> None:
        super().__init__()
        width = attention.heads * attention.head_dim
        self.spec = attention
        self.scores = Scores(pattern=attention.pattern, mask=mask, scale=attention.head_dim**-0.5)
        self.q = Linear(dim, width, attention.bias)
        self.k = Linear(dim, width, attention.bias)
        self.v = Linear(dim, width, attention.bias)
        self.global_q = Linear(dim, width, attention.bias)
        self.global_k = Linear(dim, width, attention.bias)
        self.global_v = Linear(dim, width, attention.bias)
        self.out = Linear(width, dim, attention.out_bias)

    def declare(self) -> PerToken:
        size = self.spec.head_dim
        return PerToken(kv_heads=self.k.shape[0] // size, key_dim=size, value_dim=size)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        size = self.spec.head_dim
        scores = self.scores._replace(dropout=self.spec.dropout) if self.training else self.scores
        q, k, v = (part(x).unflatten(-1, (-1, size)) for part in (self.q, self.k, self.v))  # [B,T,H,K] each
        mixed = ctx.state.attend(self.index, q, k, v, scores)
        if ctx.marks is not None:
            q = self.global_q(pick(x, ctx.marks)).unflatten(-1, (-1, size))  # [B,M,H,K]
            k, v = (part(x).unflatten(-1, (-1, size)) for part in (self.global_k, self.global_v))
            whole = mix(q, k, v, ctx.marks.seen, False, scores.scale, dropout=scores.dropout)
            mixed = put(mixed, whole, ctx.marks)
        return self.out(mixed.flatten(-2))
