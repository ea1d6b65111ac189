"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), computed in fp32, returned in the input's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import rows, spec


class Normalise(nn.Module):
    """One of the two norms over the last dimension; weight [D], bias [D] if the spec has one."""

    def __init__(self, norm: spec.Norm, dim: int) -> None:
        super().__init__()
        self.spec = norm
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.spec, x, self.weight, self.bias)


def normalise(norm: spec.Norm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..,D] normalised over its last dimension: by the row-exact operator where it can be, else by PyTorch."""
    exact = rows.normalise(norm, x, weight, bias)
    if exact is not None:
        return exact
    weight = weight.float()
    if norm.offset:
        weight = weight + norm.offset
    if norm.kind == "rms":
        return F.rms_norm(x.float(), weight.shape, weight, norm.eps).to(x.dtype)
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), weight.shape, weight, bias, norm.eps).to(x.dtype)
