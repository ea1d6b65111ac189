"""What is read off the last hidden states: the language, pooler and class heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import lean, spec
from openbook.nn.activation import ACTIVATIONS, activate
from openbook.nn.linear import Linear, cast
from openbook.nn.norm import Normalise
from openbook.nn.packed import Packed, RowLinear


class TransformLayer(nn.Module):
    """linear [W,D], activation, norm: before a head that then reads W features."""

    def __init__(self, transform: spec.Transform, dim: int) -> None:
        super().__init__()
        self.spec = transform
        self.width = transform.dim or dim
        self.linear = Linear(dim, self.width, transform.bias)
        self.act = ACTIVATIONS[transform.activation] if transform.activation else nn.Identity()
        self.norm = Normalise(transform.norm, self.width) if transform.norm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        x = self.act(self.linear(x))
        return x if self.norm is None else self.norm(x)


class LanguageHead(nn.Module):
    """Hidden [..,D] → logits [..,V], or [..,2,V] of two directions.

    weight [V,D] is its own, or the token embedding that is handed in when tied.
    """

    def __init__(self, head: spec.Language, vocab: int, dim: int) -> None:
        super().__init__()
        self.spec = head
        dim //= head.directions
        self.transform = TransformLayer(head.transform, dim) if head.transform else None
        width = dim if self.transform is None else self.transform.width
        self.weight = None if head.tied else nn.Parameter(torch.empty(vocab, width))
        self.bias = nn.Parameter(torch.empty(vocab)) if head.bias else None
        self.packed: Packed | RowLinear | None = None  # the matrix in another form (nn/serving.py)

    def matrix(self, tied: Tensor) -> Tensor:
        """The matrix [V,D] as a tensor, in whatever form it is kept."""
        if isinstance(self.packed, Packed):
            return self.packed.unpack()
        return tied if self.weight is None else self.weight

    def before(self, hidden: Tensor) -> Tensor:
        """What comes before the matrix: one state for each direction, transform and scale."""
        if self.spec.directions > 1:
            hidden = hidden.unflatten(-1, (self.spec.directions, -1))
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.spec.scale == 1.0 else hidden * self.spec.scale

    def after(self, logits: Tensor) -> Tensor:
        """What comes after the matrix: the soft cap."""
        cap = self.spec.softcap
        return logits if cap is None else activate("tanh", logits / cap) * cap

    def forward(self, hidden: Tensor, tied: Tensor) -> Tensor:
        if self.packed is not None:
            logits = self.packed(self.before(hidden))
            return self.after(logits if self.bias is None else logits + self.bias.to(logits.dtype))
        weight = self.matrix(tied)
        bias = None if self.bias is None else cast(self.bias, hidden.dtype)
        hidden, weight = self.before(hidden), cast(weight, hidden.dtype)
        logits = lean.product(hidden, weight, bias)
        return self.after(F.linear(hidden, weight, bias) if logits is None else logits)


class PoolerHead(nn.Module):
    """tanh(linear) of the first token, [B,T,D] → [B,D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = Linear(dim, dim, bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        return activate("tanh", self.linear(hidden[:, 0]))


class MixHead(nn.Module):
    """scale · Σ softmax(weights)_l · h_l of all layers (Peters et al. 2018, eq. 1): weights [L+1], scale [1]."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(layers))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, layers: list[Tensor]) -> Tensor:
        shares = self.weights.float().softmax(0)
        mixed = sum((share * layer.float() for share, layer in zip(shares, layers, strict=True)), start=torch.zeros(()))
        return (self.scale.float() * mixed).to(layers[0].dtype)


class ClassHead(nn.Module):
    """Logits over labels; what it reads (a pooled row, every token, one token) is its spec's `over`."""

    def __init__(self, head: spec.Classes, dim: int) -> None:
        super().__init__()
        self.spec = head
        self.transform = TransformLayer(head.transform, dim) if head.transform else None
        self.linear = Linear(dim if self.transform is None else self.transform.width, head.count, head.bias)

    def forward(self, features: Tensor) -> Tensor:
        if self.transform is not None:
            features = self.transform(features)
        if self.spec.dropout and self.training:
            features = F.dropout(features, self.spec.dropout)
        return self.linear(features)


def pooled(hidden: Tensor, real: Tensor | None, by: spec.Pooled) -> Tensor:
    """The tokens of each row, [B,T,D], as one vector [B,D]; `real` [B,T] says which are no padding, None: all."""
    if by == "cls":
        return hidden[:, 0]
    if real is None:
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    if by == "last":
        last = torch.where(real, places, 1).amax(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    seen = real.unsqueeze(2)  # [B,T,1]
    if by == "max":
        return torch.where(seen, hidden, float("-inf")).amax(dim=1)
    kept = torch.where(seen, hidden, 0.0)
    if by == "weighted":
        weights = places.to(hidden.dtype).unsqueeze(1)  # [T,1]
        return (kept * weights).sum(dim=1) / (seen * weights).sum(dim=1)
    count = seen.sum(dim=1)
    return kept.sum(dim=1) / (count.sqrt() if by == "root" else count)


class SentenceHead(nn.Module):
    """The vector of each row: hidden [B,T,D] → [B,W]."""

    def __init__(self, head: spec.Sentence, dim: int) -> None:
        super().__init__()
        self.spec = head
        width, layers = dim * len(head.by), []
        for layer in head.dense:
            layers.append(TransformLayer(layer, width))
            width = layers[-1].width
        self.width = width
        self.dense = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, real: Tensor | None = None) -> Tensor:
        x = torch.cat([pooled(hidden, real, way) for way in self.spec.by], dim=-1)
        for layer in self.dense:
            x = layer(x)
        return F.normalize(x, dim=-1) if self.spec.normalise else x
