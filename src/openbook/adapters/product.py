"""The matrix products of adapters: the one place where they are chosen.

A row's result must not depend on how many rows an adapter has in a step, so these are the row-exact products of the
served form where those can be had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openbook.nn.packed import grouped, product


def rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ in fp32: x [rows,in], weight [out,in] → [rows,out]."""
    return product(x, weight, None)


def grouped_rows(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Each row of x [n,in] times its slot's matrix of weights [E,out,in]: slot e has the rows up to ends[e] (int32)."""
    done = grouped(x, weights, ends)
    if done is not None:
        return done
    parts, start = [], 0
    for slot, end in enumerate(ends.tolist()):
        if end > start:
            parts.append(rows_linear(x[start:end], weights[slot]))
            start = end
    return torch.cat(parts)
