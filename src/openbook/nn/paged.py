"""Attention over pages of keys and values, for the engine: write new tokens, then mix for packed query rows.

The one place where the way is chosen: the native operator (native/paged.cpp) on the CPU, Triton kernels on a GPU, or
their definition in `paged_reference`. All walk the keys on a fixed grid in absolute order (see there), so that what a
query gets depends on its own numbers and on the keys and values it sees, and on nothing else; the native one bit for
bit: not on what else is in the step, how a prompt was cut, which pages hold it, nor on the number of threads. What
stands in unwritten places of a page reaches nobody, not even as NaN. Symbols: shapes.py; N sequences, P pages of the
longest.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor

from openbook import log
from openbook.native import paged as native
from openbook.native.paged import Paged, Problem
from openbook.nn import paged_reference as reference
from openbook.nn.paged_reference import Rule
from openbook.nn.pages import Layout, Pages, Walk

__all__ = ["Layout", "Pages", "Rule", "Walk", "attend", "write", "write_and_attend"]

KINDS = {torch.float32: native.FLOAT, torch.bfloat16: native.BF16, torch.int8: native.INT8}


def write(pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store k [T,G,K] and v [T,G,V], fp32 or bf16, at `slots` [T] int32; -1: nowhere. Latent pages ignore v."""
    operator = _operator(pages)
    if operator is None:
        return _kernels(pages).write(pages, k, v, slots)
    nothing = slots[:0]
    walk = Walk(table=nothing.view(0, 1), starts=nothing, lengths=nothing, slots=slots)
    k, v = _new(pages, walk, k, v, k.dtype)
    _run(operator, native.WRITE, pages, walk, k, k, v, None)
    return None


def attend(
    pages: Pages,
    walk: Walk,
    q: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Mix values by scores. q [T,H,K], fp32 or bf16 → [T,H,V] in the type of q.

    Row t of sequence i stands at p = lengths[i] - starts[i+1] + t. With `causal` it sees key j if j ≤ p and
    p - j < window, and ⌊j / chunk⌋ is ⌊p / chunk⌋; without (cross attention) all of its lengths[i]. Scores are
    scale · q·k, then softcap · tanh(s / softcap), then `bias` [H, longest] at p - j is added; `sinks` [H] are one more
    score of each head, without a value. Rows of no sequence, and those that see nothing, get zeros.
    """
    rule = Rule(causal, window, scale, softcap, bias, sinks, chunk)
    operator = _operator(pages)
    if operator is None:
        return _kernels(pages).attend(pages, walk, q, rule)
    q = _dense(q)
    out = q.new_empty(*q.shape[:2], pages.layout.value_dim)
    _run(operator, native.ATTEND, pages, walk, q, q, q, rule, out)
    return out


def write_and_attend(
    pages: Pages,
    walk: Walk,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`write` at walk.slots, then `attend`: what a layer of the engine asks for, in one native call."""
    rule = Rule(causal, window, scale, softcap, bias, sinks, chunk)
    operator = _operator(pages)
    if operator is None:
        _kernels(pages).write(pages, k, v, walk.slots)
        return _kernels(pages).attend(pages, walk, q, rule)
    q = _dense(q)
    k, v = _new(pages, walk, k, v, q.dtype)
    out = q.new_empty(*q.shape[:2], pages.layout.value_dim)
    _run(operator, native.WRITE | native.ATTEND, pages, walk, q, k, v, rule, out)
    return out


def exact(pages: Pages) -> bool:
    """Whether what a query gets here is its own bit for bit; otherwise it is close (law 3)."""
    return _operator(pages) is not None


# ------------------------------------------------------------------------------------------------ the choice


class Kernels(Protocol):
    """What does the work where the native operator does not."""

    def write(self, pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> None: ...
    def attend(self, pages: Pages, walk: Walk, q: Tensor, rule: Rule) -> Tensor: ...


def _operator(pages: Pages) -> Paged | None:
    return native.paged() if pages.data.device.type == "cpu" else None


def _kernels(pages: Pages) -> Kernels:
    return _gpu_kernels() if pages.data.device.type == "cuda" else reference


@functools.cache
def _gpu_kernels() -> Kernels:
    try:
        from openbook.nn import paged_triton
    except ImportError:
        log.note("Triton is not installed: attention over pages on the GPU is slow.", once="paged triton")
        return reference
    return paged_triton


def _new(pages: Pages, walk: Walk, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """New keys and values as the operator takes them."""
    layout = pages.layout
    assert k.shape == (len(walk.slots), layout.kv_heads, layout.key_dim), "a slot for each token, keys of this layout"
    k = _dense(k, dtype)
    return k, k if layout.latent else _dense(v, dtype)


def _run(
    operator: Paged,
    what: int,
    pages: Pages,
    walk: Walk,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Rule | None,
    out: Tensor | None = None,
) -> None:
    """The call; all tensors have a dense last dimension and live until it is done."""
    layout = pages.layout
    problem = Problem(
        pages.data.data_ptr(),
        pages.count,
        KINDS[layout.dtype],
        layout.page,
        layout.kv_heads,
        layout.key_dim,
        layout.value_dim,
        layout.latent,
        *walk.addresses,
        q.shape[0],
        q.shape[1],
        KINDS[q.dtype],
        torch.get_num_threads(),
        operator.unit,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        k.data_ptr(),
        k.stride(0),
        k.stride(1),
        v.data_ptr(),
        v.stride(0),
        v.stride(1),
    )
    if rule is not None and out is not None:
        problem.out, problem.out_token, problem.out_head = out.data_ptr(), out.stride(0), out.stride(1)
        problem.causal, problem.window, problem.chunk = rule.causal, rule.window or 0, rule.chunk or 0
        problem.scale, problem.softcap = rule.scale, rule.softcap or 0.0
        if rule.bias is not None:
            bias = rule.bias.float().contiguous()
            problem.bias, problem.bias_length = bias.data_ptr(), bias.shape[1]
        if rule.sinks is not None:
            sinks = rule.sinks.float().contiguous()
            problem.sinks = sinks.data_ptr()
    operator.run(problem, what)


def _dense(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same numbers, of this type, with a dense last dimension."""
    if dtype is not None and x.dtype != dtype:
        x = x.to(dtype)
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
