"""Norms, activations and the selective scan whose result for a row depends on that row alone, bit for bit.

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


def scan(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,
    start: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """The recurrence of nn/selective.py with its reading: y [B,T,C] and the last state [B,C,N].

    x and step [B,T,C], write and read [B,T,N], decay [C,N] (negative), skip [C], start [B,C,N]. mark [B,T]: 0 leaves
    the state as it is, 1 goes on, 2 starts from nothing.
    """
    library = usable(x)
    if library is None:
        return None
    x, step, decay, skip = (t.float().contiguous() for t in (x, step, decay, skip))
    both = torch.stack([write, read], dim=2).float()  # [B,T,2,N]
    kept = start.float().contiguous().clone()
    y = torch.empty_like(x)
    mark = None if mark is None else mark.to(torch.int8).contiguous()
    states = both.shape[-1]
    values = native.Scan(*x.shape, states, 2 * states)
    values.x, values.step, values.decay, values.skip = (t.data_ptr() for t in (x, step, decay, skip))
    values.write, values.read = both.data_ptr(), both.data_ptr() + 4 * states
    values.mark = None if mark is None else mark.data_ptr()
    values.kept, values.y = kept.data_ptr(), y.data_ptr()
    library.openbook_rows_scan(ctypes.addressof(values), torch.get_num_threads())
    return y, kept
