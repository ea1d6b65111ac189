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
        self.act = ACTIVATIONS[transform.activation]
        self.norm = Normalise(transform.norm, self.width) if transform.norm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        x = self.act(self.linear(x))
        return x if self.norm is None else self.norm(x)


class LanguageHead(nn.Module):
    """Hidden [..,D] → logits [..,V]. weight [V,D] is its own, or the token embedding that is handed in when tied."""

    def __init__(self, head: spec.Language, vocab: int, dim: int) -> None:
        super().__init__()
        self.spec = head
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
        """What comes before the matrix: transform and scale."""
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
