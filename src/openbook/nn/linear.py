"""The linear map, with the one precision scheme of the project: parameters as stored, cast where they are used.

`joint` runs several maps of the same input as one matrix product; `fuse` in `rewrite.py` makes that free of copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter in the dtype of the computation."""
    return parameter if parameter.dtype == dtype else parameter.to(dtype)


class Linear(nn.Module):
    """y = x Wᵀ + b. weight [out,in], bias [out]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else cast(self.bias, x.dtype)
        return F.linear(x, cast(self.weight, x.dtype), bias)


class Fused(nn.Module):
    """Several linear maps of one input held as one matrix; the parts' parameters are views of it.

    Not parameters of their own: the logical names stay those of the parts, so that saving, adapters and pushed weights
    still find them; gradients go to the parts.
    """

    def __init__(self, parts: list[Linear]) -> None:
        super().__init__()
        self.sizes = [part.weight.shape[0] for part in parts]
        weight = torch.cat([part.weight.data for part in parts])
        bias = None if parts[0].bias is None else torch.cat([p.bias.data for p in parts if p.bias is not None])
        start = 0
        for part, size in zip(parts, self.sizes, strict=True):
            part.weight.data = weight[start : start + size]
            if part.bias is not None and bias is not None:
                part.bias.data = bias[start : start + size]
            start += size
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.weight: Tensor
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else cast(self.bias, x.dtype)
        return F.linear(x, cast(self.weight, x.dtype), bias)


def joint(x: Tensor, parts: tuple[nn.Module, ...], fused: Fused | None) -> tuple[Tensor, ...]:
    """Several linear maps of the same `x`: one product where they are fused and no gradient is wanted."""
    if fused is not None and not torch.is_grad_enabled() and not any(part._forward_hooks for part in parts):
        return fused(x).split(fused.sizes, dim=-1)
    return tuple(part(x) for part in parts)
