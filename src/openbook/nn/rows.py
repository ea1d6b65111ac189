"""Norms and activations whose result for a row depends on that row alone, bit for bit.

PyTorch's own kernels treat the end of a tensor by other code than its middle, so that a row's last bits depend on where
it lies. `native/rows.cpp` does not. It is chosen here, by `usable`, and nowhere else: fp32 on the CPU, no gradients
wanted, not inside the compiler. Every function answers None where the reference, which stands at the caller, must work.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from openbook.native import rows as native
from openbook.nn import spec

FUNCTIONS = {name: number for number, name in enumerate(native.FUNCTIONS)}
NORMS = {"rms": 0, "layer": 1}


def usable(x: Tensor) -> ctypes.CDLL | None:
    """The native operators, where they can take `x`."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    return native.library()


def normalise(norm: spec.Norm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """x [..,D] normalised over its last dimension."""
    library = usable(x)
    if library is None or any(part is not None and part.dtype != torch.float32 for part in (weight, bias)):
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    dim = x.shape[-1]
    values = norm_of(norm, weight, bias)
    count = x.numel() // dim
    call = library.openbook_rows_normalise
    call(ctypes.addressof(values), count, dim, x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y


def norm_of(norm: spec.Norm, weight: Tensor | None, bias: Tensor | None) -> native.Norm:
    """A norm as the native operators want it."""
    addresses = (None if part is None else part.data_ptr() for part in (weight, bias))
    return native.Norm(*addresses, NORMS[norm.kind], norm.eps, norm.offset)


def activate(name: str, x: Tensor) -> Tensor | None:
    """The function `name` of each number of x."""
    library = usable(x)
    if library is None:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    library.openbook_rows_activate(FUNCTIONS[name], x.numel(), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y
