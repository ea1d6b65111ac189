"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), computed in fp32, returned in the input's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import rows, spec


class Normalise(nn.Module):
    """One of the two norms over the last dimension; weight and bias [D] if the spec has them.

    With `heads`, x is [..,H,D] and each head has its own: weight and bias [H,D].
    """

    def __init__(self, norm: spec.Norm, dim: int, heads: int | None = None) -> None:
        super().__init__()
        self.spec = norm
        shape = (dim,) if heads is None else (heads, dim)
        self.weight = nn.Parameter(torch.empty(shape)) if norm.weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if weight is not None and weight.ndim > 1:
            return self._each(x, weight, bias)
        exact = rows.normalise(self.spec, x, weight, bias)
        return self._reference(x.float(), weight, bias).to(x.dtype) if exact is None else exact

    def _each(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Every head by itself, then its own weight and bias."""
        exact = rows.normalise(self.spec, x, None, None)
        y = self._reference(x.float(), None, None) if exact is None else exact
        y = y * (weight.float() + self.spec.offset)
        return (y if bias is None else y + bias.float()).to(x.dtype)

    def _reference(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is not None:
            weight = weight.float() + self.spec.offset if self.spec.offset else weight.float()
        if self.spec.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], weight, self.spec.eps)
        return F.layer_norm(x, x.shape[-1:], weight, None if bias is None else bias.float(), self.spec.eps)
