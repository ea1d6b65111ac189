"""Multi-head latent attention (DeepSeek-AI 2024a, §2.1): keys and values of all heads made from one small vector.

    c = norm(kv_down x)[:R], shared rotary key k' = rotate((kv_down x)[R:])          all that is kept of a token
    expanded   k_h = [U_h c, k'], v_h = W_h c               keys and values for each head: whole rows, training
    absorbed   q_h' = [U_hᵀ q_h, rotate(q_h)], k = [c, k']  one kv head whose value is c, the first R of its key; W_h is
                                                            applied to what was mixed: where keys outlive the step

Both are the same function of the weights: q_h · U_h c = U_hᵀ q_h · c. Which one runs is chosen in `absorbs` alone. The
heads are counted from the weights, so that a tensor-parallel shard is just a smaller layer. Symbols: see shapes.py; R
is the rank of c, N the part of a head's key made from it, P the part that is turned, V a head's value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbook.errors import ConfigError, Refusal
from openbook.nn import packed, spec
from openbook.nn.linear import Linear, cast
from openbook.nn.norm import Normalise
from openbook.nn.packed import PackedStack, check_kind
from openbook.nn.rope import rotate
from openbook.nn.state import Context, PerToken, Scores, State, Stateful

Sizes = tuple[int, int]  # N and V


class HeadMaps(Linear):
    """U and W of all heads, head after head: weight [H·(N+V),R]."""

    def __init__(self, rank: int, heads: int, sizes: Sizes) -> None:
        super().__init__(rank, heads * sum(sizes))
        self.sizes = sizes

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """c [B,T,R] → U c [B,T,H,N] and W c [B,T,H,V]."""
        keys, values = self(latent).unflatten(-1, (-1, sum(self.sizes))).split(self.sizes, dim=-1)
        return keys, values

    def absorb(self, q: Tensor) -> Tensor:
        """q [B,T,H,N] → Uᵀ q [B,T,H,R]."""
        return by_head(self._parts(q.dtype)[0].mT, q)

    def values(self, mixed: Tensor) -> Tensor:
        """mixed c [B,T,H,R] → W of it [B,T,H,V]."""
        return by_head(self._parts(mixed.dtype)[1], mixed)

    def _parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """U [H,N,R] and W [H,V,R]."""
        if self._forward_hooks:
            raise Refusal(
                "An adapter stands on the maps from the latent to keys and values, which are not run where keys are "
                "kept between steps: merge it into the weights (`openbook.adapters.merge`)."
            )
        keys, values = split_heads(cast(self.weight, dtype), self.sizes)
        return keys, values


class ServedHeadMaps(nn.Module):
    """The same for serving, as two stacks of one matrix for each head: Uᵀ [H,R,N] and W [H,V,R].

    fp32 stacks are plain tensors. A row's result depends on that row alone.
    """

    def __init__(self, kind: str, shape: torch.Size, sizes: Sizes) -> None:
        super().__init__()
        self.kind, self.shape, self.sizes = kind, shape, sizes
        self.dtype = torch.float32  # what the weight came in
        self.key: Tensor | PackedStack
        self.value: Tensor | PackedStack

    @classmethod
    def of(cls, maps: HeadMaps, kind: str) -> ServedHeadMaps:
        """The form of these maps."""
        made = cls(kind, maps.shape, maps.sizes)
        made.dtype = maps.weight.dtype
        keys, values = split_heads(maps.weight.detach(), maps.sizes)
        for name, stacked in (("key", keys.mT), ("value", values)):
            if kind == "fp32":
                made.register_buffer(name, stacked.float().contiguous(), persistent=False)
            else:
                check_kind(kind)
                made.add_module(name, PackedStack.of(stacked.contiguous(), kind))
        return made

    def plain(self) -> HeadMaps:
        """The maps as they were, int8 with what was rounded away missing."""
        made = HeadMaps(0, 0, self.sizes)
        made.weight = nn.Parameter(self.unpack())
        return made

    def unpack(self) -> Tensor:
        """weight [H·(N+V),R] in fp32."""
        keys, values = (part.unpack() if isinstance(part, PackedStack) else part for part in (self.key, self.value))
        return torch.cat([keys.mT, values], dim=1).flatten(0, 1)

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        """Take another weight of the same shape, in place."""
        if weight.shape != self.shape:
            raise ConfigError(f"Maps of heads of {tuple(self.shape)} cannot take {tuple(weight.shape)}.")
        keys, values = split_heads(weight.detach(), self.sizes)
        for held, new in ((self.key, keys.mT), (self.value, values)):
            if isinstance(held, PackedStack):
                held.assign(new.contiguous())
            else:
                held.copy_(new)

    def absorb(self, q: Tensor) -> Tensor:
        """q [B,T,H,N] → Uᵀ q [B,T,H,R]."""
        return by_head(self.key, q)

    def values(self, mixed: Tensor) -> Tensor:
        """mixed c [B,T,H,R] → W of it [B,T,H,V]."""
        return by_head(self.value, mixed)


def split_heads(weight: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """weight [H·(N+V),R] → U [H,N,R] and W [H,V,R]."""
    keys, values = weight.unflatten(0, (-1, sum(sizes))).split(sizes, dim=1)
    return keys, values


def by_head(stacked: Tensor | PackedStack, x: Tensor) -> Tensor:
    """x [B,T,H,D], each head through its matrix of stacked [H,F,D] → [B,T,H,F]; the one choice of how."""
    heads, rows = x.shape[-2], x.flatten(0, -3).transpose(0, 1)  # [H,B·T,D]
    ends = torch.arange(1, heads + 1, dtype=torch.int32, device=x.device) * rows.shape[1]
    if isinstance(stacked, PackedStack):
        out = stacked.grouped(rows.flatten(0, 1), ends).unflatten(0, (heads, -1))
    else:
        exact = packed.grouped(rows.flatten(0, 1), stacked, ends)
        out = torch.bmm(rows, stacked.mT) if exact is None else exact.unflatten(0, (heads, -1))
    return out.transpose(0, 1).unflatten(0, x.shape[:-2])


class LatentAttention(Stateful):
    """q_down [Q,D], q_norm, q_up [H·(N+P),Q] (or q [H·(N+P),D]), kv_down [R+P,D], kv_norm, kv_up, out [D,H·V]."""

    def __init__(self, attention: spec.LatentAttention, dim: int, mask: int, rope: int) -> None:
        super().__init__()
        self.spec, self.rope, rank = attention, rope, attention.kv_rank
        size = attention.nope_dim + attention.rope.dim
        self.scores = Scores(
            pattern=attention.pattern,
            mask=mask,
            scale=size**-0.5 if attention.scale is None else attention.scale,
        )
        queries, low = attention.heads * size, attention.q_rank
        self.q = Linear(dim, queries) if low is None else None
        self.q_down = None if low is None else Linear(dim, low, attention.bias)
        self.q_norm = None if low is None else Normalise(attention.norm, low)
        self.q_up = None if low is None else Linear(low, queries)
        self.kv_down = Linear(dim, rank + attention.rope.dim, attention.bias)
        self.kv_norm = Normalise(attention.norm, rank)
        self.kv_up: HeadMaps | ServedHeadMaps
        self.kv_up = HeadMaps(rank, attention.heads, (attention.nope_dim, attention.value_dim))
        self.out = Linear(attention.heads * attention.value_dim, dim, attention.out_bias)

    def declare(self) -> PerToken:
        rank, window = self.spec.kv_rank, self.spec.pattern.window
        return PerToken(kv_heads=1, key_dim=rank + self.spec.rope.dim, value_dim=rank, window=window, latent=True)

    def absorbs(self, state: State) -> bool:
        """The one choice of the form: absorbed where keys are kept, and where the maps are held for nothing else."""
        return state.keeps or isinstance(self.kv_up, ServedHeadMaps)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        rank, nope, turned = self.spec.kv_rank, self.spec.nope_dim, self.spec.rope.dim
        cos, sin = ctx.rotary[self.rope]
        neighbours = self.spec.rope.neighbours
        q, q_turned = self._queries(x).unflatten(-1, (-1, nope + turned)).split((nope, turned), dim=-1)  # [B,T,H,..]
        low, shared = self.kv_down(x).split((rank, turned), dim=-1)
        latent = self.kv_norm(low)  # [B,T,R]
        q_turned = rotate(q_turned, cos, sin, neighbours)
        shared = rotate(shared.unsqueeze(-2), cos, sin, neighbours)  # [B,T,1,P]
        scores = self.scores._replace(dropout=self.spec.dropout) if self.training else self.scores
        if isinstance(self.kv_up, ServedHeadMaps) or self.absorbs(ctx.state):
            q = torch.cat([self.kv_up.absorb(q), q_turned], dim=-1)  # [B,T,H,R+P]
            k = torch.cat([latent.unsqueeze(-2), shared], dim=-1)  # [B,T,1,R+P]
            mixed = self.kv_up.values(ctx.state.attend(self.index, q, k, k[..., :rank], scores))  # [B,T,H,V]
        else:
            keys, values = self.kv_up.expand(latent)
            k = torch.cat([keys, shared.expand(-1, -1, keys.shape[2], -1)], dim=-1)  # [B,T,H,N+P]
            mixed = ctx.state.attend(self.index, torch.cat([q, q_turned], dim=-1), k, values, scores)
        return self.out(mixed.flatten(-2))

    def _queries(self, x: Tensor) -> Tensor:
        """[B,T,H·(N+P)]."""
        if self.q is not None:
            return self.q(x)
        assert self.q_down is not None
        assert self.q_norm is not None
        assert self.q_up is not None
        return self.q_up(self.q_norm(self.q_down(x)))
