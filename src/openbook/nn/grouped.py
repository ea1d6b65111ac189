"""One matrix product for each group of rows, as one operator that the compiler does not look into.

`grouped(rows [n,D], stacked [E,F,D], ends [E])` → [n,F]: rows `ends[e-1]` to `ends[e]` times `stacked[e]` transposed.
Rows after the last end belong to no group and give zeros. The fused operator of torch wants rows of whole 16 bytes and
a dtype it knows; other shapes run group by group.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 16  # bytes, of every row the fused operator reads


def grouped_reference(rows: Tensor, stacked: Tensor, ends: Tensor) -> Tensor:
    """The definition, group by group; works for any shape."""
    spans = list(pairwise([0, *ends.tolist()]))
    parts = [rows[start:end] @ stacked[e].t() for e, (start, end) in enumerate(spans)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - spans[-1][1], stacked.shape[1])])


@torch.library.custom_op("openbook::grouped", mutates_args=())
def grouped(rows: Tensor, stacked: Tensor, ends: Tensor) -> Tensor:
    """Rows of each group times that group's matrix. rows [n,D], stacked [E,F,D], ends [E] int32 → [n,F]."""
    if _fused(rows, *stacked.shape[1:], *(step for step in stacked.stride() if step != 1)):
        out = F.grouped_mm(rows.contiguous(), stacked.transpose(1, 2), offs=ends)
        if rows.device.type == "cpu" and int(ends[-1]) == len(rows):
            return out
        ungrouped = torch.arange(len(rows), device=rows.device) >= ends[-1]
        return out.masked_fill_(ungrouped.unsqueeze(1), 0)
    return grouped_reference(rows, stacked, ends)


@torch.library.custom_op("openbook::grouped_outer", mutates_args=())
def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """left [n,F] and right [n,D] → [E,F,D]: for each group the transposed left rows times the right rows."""
    if _fused(left, left.shape[1], right.shape[1]):
        return F.grouped_mm(left.contiguous().t(), right.contiguous(), offs=ends)
    spans = pairwise([0, *ends.tolist()])
    return torch.stack([left[start:end].t() @ right[start:end] for start, end in spans])


def _fused(rows: Tensor, *sizes: int) -> bool:
    known = rows.dtype == torch.bfloat16 or (rows.dtype == torch.float32 and rows.device.type == "cpu")
    return known and len(rows) > 0 and all(size * rows.element_size() % ALIGNED == 0 for size in sizes)


@grouped.register_fake
def _(rows: Tensor, stacked: Tensor, ends: Tensor) -> Tensor:  # noqa: ARG001
    return rows.new_empty(rows.shape[0], stacked.shape[1])


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, stacked, ends = ctx.saved_tensors
    to_rows = grouped(grad, stacked.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
    to_stacked = grouped_outer(grad, rows, ends) if ctx.needs_input_grad[1] else None
    return to_rows, to_stacked, None


grouped.register_autograd(_backward, setup_context=_remember)
