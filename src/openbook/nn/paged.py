"""Attention over pages of keys and values, for the engine: write new tokens, then mix for packed query rows.

The one place where the way is chosen: the native operator (native/paged.cpp) on the CPU, or its definition in
`paged_reference`. Both walk the keys on a fixed grid in absolute order (see there), so that what a query gets depends
on its own numbers and on the keys and values it sees, and on nothing else; the native one bit for bit: not on what else
is in the step, how a prompt was cut, which pages hold it, nor on the number of threads. What stands in unwritten places
of a page reaches nobody, not even as NaN. Symbols: shapes.py; N sequences, P pages of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openbook.native import paged as native
from openbook.native.paged import Paged, Problem, Strided
from openbook.nn import paged_reference as reference
from openbook.nn.paged_reference import Rule
from openbook.nn.pages import Layout, Pages, Walk

__all__ = ["Layout", "Pages", "Rule", "Walk", "attend", "write", "write_and_attend"]

KINDS = {torch.float32: native.FLOAT, torch.bfloat16: native.BF16, torch.int8: native.INT8}


def write(pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store k [T,G,K] and v [T,G,V], fp32 or bf16, at `slots` [T] int32; -1: nowhere. Latent pages ignore v."""
    operator = _operator(pages)
    if operator is None:
        return reference.write(pages, k, v, slots)
    problem = _problem(pages)
    k, v = _source(problem, pages, k, v, slots)
    operator.run(problem, native.WRITE)
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
) -> Tensor:
    """Mix values by scores. q [T,H,K], fp32 or bf16 → [T,H,V] in the type of q.

    Row t of sequence i stands at p = lengths[i] - starts[i+1] + t. With `causal` it sees key j if j ≤ p and
    p - j < window; without (cross attention) all of its lengths[i]. Scores are scale · q·k, then
    softcap · tanh(s / softcap), then `bias` [H, longest] at p - j is added; `sinks` [H] are one more score of each
    head, without a value. Rows of no sequence, and those that see nothing, get zeros.
    """
    rule = Rule(causal, window, scale, softcap, bias, sinks)
    operator = _operator(pages)
    if operator is None:
        return reference.attend(pages, walk, q, rule)
    return _run(operator, native.ATTEND, pages, walk, q, rule)


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
) -> Tensor:
    """`write` at walk.slots, then `attend`: what a layer of the engine asks for, in one native call."""
    rule = Rule(causal, window, scale, softcap, bias, sinks)
    operator = _operator(pages)
    if operator is None:
        reference.write(pages, k, v, walk.slots)
        return reference.attend(pages, walk, q, rule)
    return _run(operator, native.WRITE | native.ATTEND, pages, walk, q, rule, k, v)


# ------------------------------------------------------------------------------------------------ the native operator


def _operator(pages: Pages) -> Paged | None:
    return native.paged() if pages.data.device.type == "cpu" else None


def _problem(pages: Pages) -> Problem:
    layout = pages.layout
    return Problem(
        pages.data.data_ptr(),
        pages.count,
        KINDS[layout.dtype],
        layout.page,
        layout.kv_heads,
        layout.kv_heads,
        layout.key_dim,
        layout.value_dim,
        layout.latent,
        threads=torch.get_num_threads(),
    )


def _source(problem: Problem, pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Say where the new tokens are; what is returned must outlive the call."""
    layout = pages.layout
    assert k.shape[0] == slots.shape[0], "a slot for each token"
    assert k.shape[1:] == (layout.kv_heads, layout.key_dim), "keys of this layout"
    k = _dense(k)
    v = k if layout.latent else _dense(v)
    assert v.dtype == k.dtype, "keys and values of one type"
    problem.tokens, problem.slots, problem.input = len(k), _table(slots), KINDS[k.dtype]
    problem.k, problem.v = _strided(k), _strided(v)
    return k, v


def _run(
    operator: Paged,
    what: int,
    pages: Pages,
    walk: Walk,
    q: Tensor,
    rule: Rule,
    k: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    problem = _problem(pages)
    q = _dense(q)
    if k is not None and v is not None:
        k, v = _source(problem, pages, k.to(q.dtype), v.to(q.dtype), walk.slots)
    out = q.new_empty(*q.shape[:2], pages.layout.value_dim)
    problem.tokens, problem.heads = q.shape[:2]
    problem.sequences, problem.width = walk.table.shape
    problem.table, problem.starts, problem.lengths = _table(walk.table), _table(walk.starts), _table(walk.lengths)
    problem.input, problem.q, problem.out = KINDS[q.dtype], _strided(q), _strided(out)
    problem.causal, problem.window = rule.causal, rule.window or 0
    problem.scale, problem.softcap = rule.scale, rule.softcap or 0.0
    if rule.bias is not None:
        bias = rule.bias.float().contiguous()
        problem.bias, problem.bias_length = bias.data_ptr(), bias.shape[1]
    if rule.sinks is not None:
        sinks = rule.sinks.float().contiguous()
        problem.sinks = sinks.data_ptr()
    operator.run(problem, what)
    return out


def _dense(x: Tensor) -> Tensor:
    """The same numbers with a dense last dimension."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _strided(x: Tensor) -> Strided:
    return Strided(x.data_ptr(), x.stride(0), x.stride(1))


def _table(x: Tensor) -> int:
    assert x.dtype == torch.int32, "tables of a walk are int32"
    assert x.is_contiguous(), "tables of a walk are dense"
    return x.data_ptr()
