"""Decoding a few rows without the cost of many small operations: a block in two native calls, beside its reference.

The reference is the block itself (stack.py). Where a step has at most `block.MOST` rows, runs on the CPU without
gradients, and the block is the common one (pre-norm, self-attention, then a feed-forward layer, plain linear maps),
`native/block.cpp` does what stands before and after attention; attention itself asks the state, as always. Parameters
are read where they lie, so nothing is copied and pushed weights count at once.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from openbook.native import block as native
from openbook.nn.attention import SelfAttention
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.norm import Normalise
from openbook.nn.state import Context

if TYPE_CHECKING:
    from openbook.nn.stack import ResidualBlock

TYPES = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


def few(x: Tensor) -> bool:
    """Whether `x` [..,D] is a step this file is for."""
    return (
        0 < x.numel() <= native.MOST * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in TYPES
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x Wᵀ + b for a few rows, [..,in] → [..,out]; None where this file cannot do it."""
    library = native.library() if few(x) and weight.dtype == x.dtype and weight.is_contiguous() else None
    if library is None or (bias is not None and bias.dtype != x.dtype):
        return None
    x = x.contiguous()
    outs, inputs = weight.shape
    y = x.new_empty(*x.shape[:-1], outs)
    library.openbook_linear(
        TYPES[x.dtype],
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.numel() // inputs,
        inputs,
        outs,
        x.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


class Plan:
    """A block as block.cpp wants it, with the addresses of its parameters."""

    def __init__(self, attention: SelfAttention, ffn: FeedForward, norms: tuple[Normalise, ...]) -> None:
        self.attention = attention
        self.ffn = ffn
        self.norms = norms
        self.addresses: tuple[int, ...] = ()
        self.block = native.Block()
        self.sizes = (0, 0)  # heads, kv heads

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        """A copy is a plan of the copied parts: addresses are not copied."""
        return Plan, (self.attention, self.ffn, self.norms)

    def current(self, dtype: torch.dtype) -> bool:
        """Whether the parameters can be used; notes where they are now."""
        parts = self._parts()
        tensors = [t for part in parts for t in _tensors(part)]
        if any(t.dtype != dtype for t in tensors) or not all(_usual(part) for part in parts):
            return False
        addresses = tuple(t.data_ptr() for t in tensors)
        if addresses != self.addresses:
            if not all(t.is_contiguous() for t in tensors):
                return False
            self._fill(dtype)
            self.addresses = addresses
        return True

    def _parts(self) -> list[nn.Module]:
        a, f = self.attention, self.ffn
        found = (*self.norms, a.q, a.k, a.v, a.out, a.q_norm, a.k_norm, f.gate, f.up, f.down)
        return [part for part in found if part is not None]

    def _fill(self, dtype: torch.dtype) -> None:
        a, f, size = self.attention, self.ffn, self.attention.spec.head_dim
        block = self.block
        self.sizes = (a.q.weight.shape[0] // size, a.k.weight.shape[0] // size)
        block.type, block.dim, block.head_dim = TYPES[dtype], a.q.weight.shape[1], size
        block.heads, block.kv_heads = self.sizes
        block.hidden, block.activation = f.up.weight.shape[0], ACTIVATIONS[f.spec.activation]
        block.before, block.after = (_norm(norm) for norm in self.norms)
        block.head_q, block.head_k = _norm(a.q_norm), _norm(a.k_norm)
        for name, part in (("q", a.q), ("k", a.k), ("v", a.v), ("out", a.out)):
            setattr(block, name, _linear(part))
        block.gate, block.up, block.down = _linear(f.gate), _linear(f.up), _linear(f.down)

    def run(self, library: ctypes.CDLL, x: Tensor, ctx: Context) -> Tensor:
        """The block's output for x [B,T,D]."""
        a, size = self.attention, self.attention.spec.head_dim
        heads, kv_heads = self.sizes
        x = x.contiguous()
        rows, threads = x.numel() // x.shape[-1], torch.get_num_threads()
        q = x.new_empty(*x.shape[:2], heads, size)
        k, v = x.new_empty(2, *x.shape[:2], kv_heads, size).unbind(0)
        cos, sin, turned = 0, 0, 0
        if a.rope is not None:
            table = ctx.rotary[a.rope]
            cos, sin, turned = table[0].data_ptr(), table[1].data_ptr(), table[0].shape[-1]
        block = ctypes.addressof(self.block)
        library.openbook_before(
            block, rows, x.data_ptr(), cos, sin, turned, q.data_ptr(), k.data_ptr(), v.data_ptr(), threads
        )
        mixed = ctx.state.attend(a.index, q, k, v, a.rule()).contiguous()
        out = torch.empty_like(x)
        library.openbook_after(block, rows, x.data_ptr(), mixed.data_ptr(), out.data_ptr(), threads)
        return out


def plan(block: ResidualBlock) -> Plan | None:
    """The plan of a block, if it is of the common kind."""
    specs = block.spec.branches
    if block.spec.parallel or len(specs) != 2 or any(s.place != "pre" or s.scale != 1.0 for s in specs):
        return None
    attention, ffn = (branch.layer for branch in block.branches)
    norms = tuple(norm for branch in block.branches if isinstance(norm := branch.norm, Normalise))
    if not isinstance(attention, SelfAttention) or not isinstance(ffn, FeedForward):
        return None
    if ffn.spec.activation not in ACTIVATIONS or len(norms) != 2 or ffn.spec.limit or ffn.spec.offset:
        return None
    if not attention.common or attention.neighbours or attention.spec.clip is not None:
        return None  # block.cpp turns halves and clips nothing
    if attention.norm is not None and attention.norm.over != "head":
        return None
    return Plan(attention, ffn, norms)


def run(block: ResidualBlock, x: Tensor, ctx: Context) -> Tensor | None:
    """The block's output, or None where the reference must do it."""
    library = native.library()
    found = None if library is None else plan_of(block)
    return found.run(library, x, ctx) if found is not None and library is not None and found.current(x.dtype) else None


def plan_of(block: ResidualBlock) -> Plan | None:
    """The plan made at an earlier step, as long as the block still has the same layers."""
    layers = [branch._modules["layer"] for branch in block.branches]
    if block.lean is None or block.lean[0] != layers:
        block.lean = (layers, plan(block))
    return block.lean[1]


def _usual(part: nn.Module) -> bool:
    """Whether a part is what the plan takes it for: no adapter in its place, no hook on it."""
    return type(part) in (Linear, Normalise) and not part._forward_hooks and not part._forward_pre_hooks


def _tensors(part: nn.Module) -> list[Tensor]:
    return [tensor for tensor in part._parameters.values() if tensor is not None]


def _linear(part: Linear | None) -> native.Linear:
    if part is None:
        return native.Linear(None, None)
    return native.Linear(part.weight.data_ptr(), None if part.bias is None else part.bias.data_ptr())


def _norm(part: Normalise | None) -> native.Norm:
    if part is None:
        return native.Norm(None, None, -1, 0.0, 0.0)
    kind = 0 if part.spec.kind == "rms" else 1
    addresses = (None if found is None else found.data_ptr() for found in (part.weight, part.bias))
    return native.Norm(*addresses, kind, part.spec.eps, part.spec.offset)
