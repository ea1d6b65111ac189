"""Ids → vectors: token embedding, learned positions, segment types; and the position biases that a stack shares."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.errors import InputError
from openbook.nn import spec
from openbook.nn.linear import Linear
from openbook.nn.norm import Normalise


class Table(nn.Module):
    """A row of numbers for each id: weight [count,D]."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Waves:
    """The sines and cosines of all positions up to the longest asked for, computed in double, kept in fp32."""

    def __init__(self, rule: spec.Sinusoidal, dim: int) -> None:
        self.rule, self.dim = rule, dim
        self.tables: dict[torch.device, Tensor] = {}

    def rows(self, positions: Tensor, longest: int) -> Tensor:
        """Of positions [B,T] below `longest` (host knowledge) → [B,T,D]."""
        table = self.tables.get(positions.device)
        if table is None or len(table) < longest:
            table = self._made(max(256, 1 << (longest - 1).bit_length())).to(positions.device)
            self.tables[positions.device] = table
        return F.embedding(positions, table)

    def _made(self, count: int) -> Tensor:
        exponent = torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim
        angles = torch.outer(torch.arange(count, dtype=torch.float64), self.rule.base**-exponent)  # [count,⌈D/2⌉]
        sines, cosines = angles.sin(), angles.cos()[:, : self.dim // 2]
        if self.rule.halves:
            return torch.cat([sines, cosines], dim=1).float()
        both = angles.new_empty(count, self.dim)
        both[:, 0::2], both[:, 1::2] = sines, cosines
        return both.float()


class Embedding(nn.Module):
    """Ids [B,T] → [B,T,D·copies], in the dtype of the computation."""

    def __init__(self, embed: spec.Embed, tokens: Table | None = None) -> None:
        super().__init__()
        self.spec = embed
        self.tokens = Table(embed.vocab, embed.inner or embed.dim) if tokens is None else tokens
        self.widen = None if embed.inner is None else Linear(embed.inner, embed.dim)
        self.positions: Table | None = None
        self.waves: Waves | None = None
        match embed.positions:
            case spec.Learned(count=count):
                self.positions = Table(count, embed.dim)
            case spec.Sinusoidal():
                self.waves = Waves(embed.positions, embed.dim)
        self.types = Table(embed.types, embed.dim) if embed.types else None
        self.norm = Normalise(embed.norm, embed.dim) if embed.norm else None

    def forward(self, ids: Tensor, positions: Tensor, longest: int, types: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`longest` bounds the positions (host knowledge), so that a row too long is a clear error, not a crash."""
        try:
            x = self.tokens(ids)
        except IndexError as error:
            found = f"{int(ids.min())} to {int(ids.max())}"
            raise InputError(f"An id is outside the vocabulary of {self.spec.vocab}: got ids from {found}.") from error
        scale = torch.tensor(self.spec.scale, dtype=x.dtype)  # rounded as the table is, whatever computes
        if dtype == torch.float32:  # what is added next is not rounded to the table's dtype
            x = x.float()
        if self.spec.scale != 1.0:
            x = x * scale.to(x.dtype)
        if self.widen is not None:
            x = self.widen(x.to(dtype))
        if self.positions is not None:
            count, offset = self.spec.room or 0, len(self.positions.weight) - (self.spec.room or 0)
            if longest > count:
                raise InputError(f"This model has {count} learned positions; a row of {longest} tokens does not fit.")
            x = x + self.positions(positions + offset if offset else positions)
        if self.waves is not None:
            x = x + self.waves.rows(positions, longest).to(x.dtype)
        if self.types is not None:
            x = x + self.types(torch.zeros_like(ids) if types is None else types)
        if self.norm is not None:
            x = self.norm(x)
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        if self.spec.copies > 1:
            x = x.repeat(1, 1, self.spec.copies)
        return x.to(dtype)


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distance (Raffel et al. 2020, §2.1): weight [buckets,H].

    Half of the buckets (of each direction) are exact distances, the rest widen logarithmically up to `distance`.
    """

    def __init__(self, relative: spec.Relative) -> None:
        super().__init__()
        self.spec = relative
        self.weight = nn.Parameter(torch.empty(relative.buckets, relative.heads))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Positions [B,T] and [B,S] → bias [B,H,T,S]."""
        distance = key.unsqueeze(1) - query.unsqueeze(2)  # [B,T,S]
        return F.embedding(self._bucket(distance), self.weight).permute(0, 3, 1, 2)

    def _bucket(self, distance: Tensor) -> Tensor:
        count = self.spec.buckets
        if self.spec.bidirectional:
            count //= 2
            side = (distance > 0).long() * count
            distance = distance.abs()
        else:
            side = torch.zeros_like(distance)
            distance = (-distance).clamp(min=0)
        exact = count // 2
        ratio = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.spec.distance / exact)
        wide = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return side + torch.where(distance < exact, distance, wide)


class LinearBias(nn.Module):
    """-slope · distance for each head, to both sides (Press et al. 2022, §3). No parameters: `span` are its heads.

    A tensor-parallel shard has the span of its heads, of as many as the spec says.
    """

    def __init__(self, alibi: spec.Alibi) -> None:
        super().__init__()
        self.spec = alibi
        self.span = (0, alibi.heads)

    def slopes(self, device: torch.device) -> Tensor:
        """Slopes of this module's heads [H], scale included."""
        heads, most = self.spec.heads, self.spec.most
        lower = 1 << (heads.bit_length() - 1)  # a power of two
        steps = (torch.arange(lower, device=device) + 1) * (most / lower)
        between = (torch.arange(heads - lower, device=device) + 0.5) * (most / lower)
        return torch.exp2(-torch.cat([steps, between]))[slice(*self.span)] * self.spec.scale

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Positions [B,T] and [B,S] → bias [B,H,T,S]."""
        distance = (key.unsqueeze(1) - query.unsqueeze(2)).abs().unsqueeze(1)  # [B,1,T,S]
        return distance * -self.slopes(distance.device)[:, None, None]


def position_bias(rule: spec.Relative | spec.Alibi) -> RelativeBias | LinearBias:
    """The module of a stack's position bias."""
    return RelativeBias(rule) if isinstance(rule, spec.Relative) else LinearBias(rule)
