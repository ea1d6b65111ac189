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
        exact = rows.normalise(self.spec, x, self.weight, self.bias)
        if exact is not None:
            return exact
        weight = self.weight.float()
        if self.spec.offset:
            weight = weight + self.spec.offset
        if self.spec.kind == "rms":
            return F.rms_norm(x.float(), weight.shape, weight, self.spec.eps).to(x.dtype)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), weight.shape, weight, bias, self.spec.eps).to(x.dtype)
