"""Ids → vectors: token embedding, learned positions, segment types; and the shared relative bias of T5."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.errors import InputError
from openbook.nn import spec
from openbook.nn.norm import Normalise


class Table(nn.Module):
    """A row of numbers for each id: weight [count,D]."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Embedding(nn.Module):
    """Ids [B,T] → [B,T,D·copies], in the dtype of the computation."""

    def __init__(self, embed: spec.Embed) -> None:
        super().__init__()
        self.spec = embed
        self.tokens = Table(embed.vocab, embed.dim)
        self.positions = Table(embed.positions.count, embed.dim) if embed.positions else None
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
        if self.positions is not None:
            offset = self.spec.positions.offset if self.spec.positions else 0
            count = self.positions.weight.shape[0] - offset
            if longest > count:
                raise InputError(f"This model has {count} learned positions; a row of {longest} tokens does not fit.")
            x = x + self.positions(positions + offset if offset else positions)
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
