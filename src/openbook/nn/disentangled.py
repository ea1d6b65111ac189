"""Attention that tells contents and relative positions apart (He et al. 2021, arXiv 2006.03654, §3.1).

    score(i,j) = (q_i · k_j  +  q_i · r^k_δ(i,j)  +  k_j · r^q_δ(i,j)) · scale
                 content       content → position    position → content

δ(i,j) is the bucket of i - j. The paper writes δ(j,i) in the last term; published models read the table as here.
Symbols: R vectors of relative positions; see shapes.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import spec
from openbook.nn.activation import ACTIVATIONS
from openbook.nn.linear import Linear, cast
from openbook.nn.norm import Normalise
from openbook.nn.state import Context, Distances, PerToken, Scores, Stateful


class DistanceTable(nn.Module):
    """A vector for each bucket of relative distance: weight [R,D], R = 2 · span, and its norm."""

    def __init__(self, vectors: spec.RelativeVectors, dim: int) -> None:
        super().__init__()
        self.spec = vectors
        self.weight = nn.Parameter(torch.empty(2 * vectors.span, dim))
        self.norm = Normalise(vectors.norm, dim) if vectors.norm else None

    def forward(self, positions: Tensor, alike: bool, dtype: torch.dtype) -> Distances:
        """Positions [B,T]; `alike`: those of the first row are those of all."""
        places = positions[:1] if alike else positions
        span = self.spec.span
        distance = self._bucket(places.unsqueeze(2) - places.unsqueeze(1))  # [B or 1,T,T], i - j
        which = (distance + span).clamp(0, 2 * span - 1)
        weight = cast(self.weight, dtype)
        return Distances(weight if self.norm is None else self.norm(weight), which)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Exact up to the middle, then ever wider (He et al. 2021b, arXiv 2111.09543); in fp32, as it was trained."""
        if self.spec.distance is None:
            return distance
        middle = self.spec.span // 2
        far = distance.abs().clamp(min=middle - 1)
        widest = torch.log(torch.tensor((self.spec.distance - 1) / middle, device=distance.device))
        wide = torch.ceil(torch.log(far / middle) / widest * (middle - 1)) + middle
        return torch.where(far <= middle, distance, (wide * distance.sign()).long())


class DisentangledSelfAttention(Stateful):
    """q, k, v [H·K,D], out [D,H·K]; position_k and position_q [H·K,D] where they are not q and k themselves."""

    def __init__(self, attention: spec.DisentangledAttention, dim: int, mask: int) -> None:
        super().__init__()
        width = attention.heads * attention.head_dim
        own = not attention.shared
        self.spec = attention
        self.scores = Scores(pattern=attention.pattern, mask=mask, scale=attention.factor)
        self.q = Linear(dim, width, True)
        self.k = Linear(dim, width, attention.key_bias)
        self.v = Linear(dim, width, True)
        self.position_k = Linear(dim, width, attention.key_bias) if own and attention.content_to_position else None
        self.position_q = Linear(dim, width, True) if own and attention.position_to_content else None
        self.out = Linear(width, dim, True)

    def declare(self) -> PerToken:
        size = self.spec.head_dim
        return PerToken(kv_heads=self.k.shape[0] // size, key_dim=size, value_dim=size)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        size = self.spec.head_dim
        q, k, v = (part(x).unflatten(-1, (-1, size)) for part in (self.q, self.k, self.v))  # [B,T,H,K] each
        scores = self.scores._replace(dropout=self.spec.dropout) if self.training else self.scores
        if ctx.vectors is not None:
            scores = scores._replace(added=self._positions(q, k, ctx.vectors))
        return self.out(ctx.state.attend(self.index, q, k, v, scores).flatten(-2))

    def _positions(self, q: Tensor, k: Tensor, distances: Distances) -> Tensor | None:
        """What positions add to the scores, [B,H,T,T]."""
        vectors, size = distances.vectors, self.spec.head_dim
        if self.training and self.spec.position_dropout:
            vectors = F.dropout(vectors, self.spec.position_dropout)
        index = distances.which.unsqueeze(1).expand(q.shape[0], q.shape[2], -1, -1)
        added: list[Tensor] = []
        if self.spec.content_to_position:
            keys = (self.position_k or self.k)(vectors).unflatten(-1, (-1, size))  # [R,H,K]
            added.append(torch.einsum("bthk,rhk->bhtr", q, keys).gather(3, index))
        if self.spec.position_to_content:
            queries = (self.position_q or self.q)(vectors).unflatten(-1, (-1, size))
            added.append(torch.einsum("bshk,rhk->bhrs", k, queries).gather(2, index))
        return sum(added[1:], start=added[0]).float() * self.scores.scale if added else None


class Convolve(nn.Module):
    """A convolution over neighbouring tokens: weight [D,D / groups,kernel], bias [D]."""

    def __init__(self, convolution: spec.Convolution, dim: int) -> None:
        super().__init__()
        self.spec = convolution
        self.weight = nn.Parameter(torch.empty(dim, dim // convolution.groups, convolution.kernel))
        self.bias = nn.Parameter(torch.empty(dim))
        self.act = ACTIVATIONS[convolution.activation]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        kernel, groups, tokens = self.spec.kernel, self.spec.groups, x.shape[1]
        before = (kernel - 1) // 2
        sides = (before, kernel - 1 - before)
        shifts = range(kernel)
        near = F.pad(x, (0, 0, *sides))
        if (numbers := ctx.state.segments) is not None:  # neighbours of another text, and padding, count as nothing
            others = F.pad(numbers, sides)
            seen = [((others[:, s : s + tokens] == numbers) & (numbers != 0)).unsqueeze(2) for s in shifts]
            near = torch.stack([near[:, s : s + tokens] * seen[s] for s in shifts], dim=-1)  # [B,T,D,kernel]
        else:
            near = torch.stack([near[:, s : s + tokens] for s in shifts], dim=-1)
        weight = cast(self.weight, x.dtype).unflatten(0, (groups, -1))
        out = torch.einsum("btgik,goik->btgo", near.unflatten(2, (groups, -1)), weight).flatten(2)
        out = out + cast(self.bias, x.dtype)
        if self.training and self.spec.dropout:
            out = F.dropout(out, self.spec.dropout)
        return self.act(out)
