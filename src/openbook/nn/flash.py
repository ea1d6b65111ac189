"""Fused attention as one opaque operator: attention over bf16 on the CPU through `native/attention.cpp`.

`suits` says where it applies, `flash` is the operator; the definition they are held to is `mix_reference` in attend.py,
where the choice is made. torch.compile sees one operator with a known output, autograd one function: the forward pass
keeps out and lse (log sum exp of each query's scores), the backward pass makes the weights again. Symbols: shapes.py.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from openbook.native.attention import Attention, Problem, Strided, attention

T = TypeVar("T", Tensor, Tensor | None)

LEAST = 32  # tokens below which PyTorch's operator has less to set up
LARGEST = 256  # features of a head
AVX512, AMX = 1, 2  # units of `Attention`


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _unit() -> int:
    operator = attention()
    return 0 if operator is None else operator.unit


def suits(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether `flash` is the faster way to mix these: bf16 on this CPU, enough tokens, heads of at most `LARGEST`.

    With AVX-512 BF16 alone its forward pass is a third slower than PyTorch's and its backward pass twice as fast: there
    it is for training only.
    """
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype == torch.bfloat16
        and q.shape[1] >= LEAST
        and max(q.shape[3], v.shape[3]) <= LARGEST
        and scale > 0
        and _unit() >= (AVX512 if torch.is_grad_enabled() and q.requires_grad else AMX)
    )


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    window: int | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Mix values by scores. q [B,T,H,K], k [B,S,G,K], v [B,S,G,V], bf16 on the CPU → [B,T,H,V].

    Query t sees key s if s ≤ t (causal) and |t - s| < window. With `segments` [B,T] int64 (then S is T) both must be of
    one segment above 0, and each also sees itself. What a row gets depends on this row alone, bit for bit.
    """
    if segments is not None:
        assert segments.shape == q.shape[:2] == k.shape[:2], "segments are those of queries and keys alike"
    mixed, _ = torch.ops.openbook.attention(q, k, v, segments, causal, window or 0, scale)
    return mixed


@torch.library.custom_op("openbook::attention", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None, causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns out [B,T,H,V] and lse [B,H,T] fp32."""
    out, lse = _outputs(q, k, v, segments, causal, window, scale)
    q, k, v, segments = _dense(q), _dense(k), _dense(v), _dense(segments)  # kept here: the problem holds addresses
    problem = _problem(q, k, v, segments, causal, window, scale)
    problem.out, problem.lse = _strided(out), lse.data_ptr()
    _native().forward(problem)
    return out, lse


@_forward.register_fake
def _outputs(
    q: Tensor,
    k: Tensor,  # noqa: ARG001
    v: Tensor,
    segments: Tensor | None,  # noqa: ARG001
    causal: bool,  # noqa: ARG001
    window: int,  # noqa: ARG001
    scale: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    rows, tokens, heads, _ = q.shape
    return q.new_empty(rows, tokens, heads, v.shape[3]), q.new_empty(rows, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("openbook::attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq, dk, dv, dense."""
    slopes = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    grad, q, k, v, out = (_dense(x) for x in (grad, q, k, v, out))
    lse, segments = lse.contiguous(), _dense(segments)
    problem = _problem(q, k, v, segments, causal, window, scale)
    problem.out, problem.lse, problem.grad = _strided(out), lse.data_ptr(), _strided(grad)
    problem.dq, problem.dk, problem.dv = (_strided(slope) for slope in slopes)
    _native().backward(problem)
    return slopes


@_backward.register_fake
def _slopes(
    grad: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *rest: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, segments, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, segments)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _derive(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    q, k, v, out, lse, segments = ctx.saved_tensors
    slopes = torch.ops.openbook.attention_backward(grad, q, k, v, out, lse, segments, *ctx.rest)
    return *slopes, None, None, None, None


_forward.register_autograd(_derive, setup_context=_keep)


def _native() -> Attention:
    operator = attention()
    assert operator is not None, "`suits` was asked first"
    return operator


def _dense(x: T) -> T:
    """The same numbers with a dense last dimension."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _strided(x: Tensor) -> Strided:
    return Strided(x.data_ptr(), *x.stride()[:3])


def _problem(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None, causal: bool, window: int, scale: float
) -> Problem:
    rows, queries, heads, key_dim = q.shape
    return Problem(
        rows=rows,
        queries=queries,
        keys=k.shape[1],
        heads=heads,
        kv_heads=k.shape[2],
        key_dim=key_dim,
        value_dim=v.shape[3],
        causal=causal,
        window=window,
        threads=torch.get_num_threads(),
        scale=scale,
        segments=None if segments is None else segments.data_ptr(),
        segments_stride=0 if segments is None else segments.stride(0),
        q=_strided(q),
        k=_strided(k),
        v=_strided(v),
    )
