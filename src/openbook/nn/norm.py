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
        return normalise(self.spec, x, self.weight, self.bias)


def normalise(norm: spec.Norm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [..,D] normalised over its last dimension: by the row-exact operator where it can be, else by PyTorch.

    A weight [H,D] is each head's own, of x [..,H,D].
    """
    if weight is not None and weight.ndim > 1:
        y = normalise(norm, x.float(), None, None) * (weight.float() + norm.offset)
        return (y if bias is None else y + bias.float()).to(x.dtype)
    exact = rows.normalise(norm, x, weight, bias)
    if exact is not None:
        return exact
    if weight is not None:
        weight = weight.float() + norm.offset if norm.offset else weight.float()
    if norm.kind == "rms":
        return F.rms_norm(x.float(), x.shape[-1:], weight, norm.eps).to(x.dtype)
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, norm.eps).to(x.dtype)
