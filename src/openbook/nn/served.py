"""A block of a served model in two native calls, beside its reference, the block itself (stack.py).

It is for the common block: self-attention, then (or beside it) a feed-forward layer, with norms before, after or around
them, whose linear maps are those of `packed.py`. `native/served.h` does what stands before and after attention;
attention asks the state, as always. The bits are those of the same layers run one by one, so a step may go either way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from openbook.native import rows as native
from openbook.nn import rows
from openbook.nn.attention import SelfAttention
from openbook.nn.mlp import FeedForward
from openbook.nn.norm import Normalise
from openbook.nn.packed import Packed, RowLinear
from openbook.nn.state import Context

if TYPE_CHECKING:
    from openbook.nn.stack import ResidualBlock, ResidualBranch

OVER = {"head": 0, "heads": 1, "width": 2}
NONE = native.Norm(None, None, -1, 0.0, 0.0)


def run(block: ResidualBlock, x: Tensor, ctx: Context) -> Tensor | None:
    """The block's output for x [B,T,D], or None where the reference must do it."""
    library = rows.usable(x)
    if library is None or block.training or not x.numel():
        return None
    if block.served is None or not block.served.current():
        block.served = plan(block)
    return block.served.run(library, x, ctx) if block.served.fits and not block.served.watch.hooked() else None


class Watch:
    """What a plan was made from; it holds as long as every part is the same one."""

    def __init__(self) -> None:
        self.held: list[dict[str, Any]] = []  # where each watched thing is held,
        self.names: list[str] = []  # under which name,
        self.things: list[object] = []  # and which it was
        self.hooks: list[Mapping[int, Any]] = []

    def part(self, owner: nn.Module, name: str) -> Any:
        """The module `name` of `owner`, watched with its tensors."""
        found = owner._modules.get(name)
        self._note(owner._modules, name, found)
        if found is not None:
            for held in (found._parameters, found._buffers):
                for key, value in held.items():
                    self._note(held, key, value)
            self.hooks += [found._forward_hooks, found._forward_pre_hooks]
        return found

    def _note(self, held: dict[str, Any], name: str, thing: object) -> None:
        self.held.append(held)
        self.names.append(name)
        self.things.append(thing)

    def current(self) -> bool:
        """Whether everything is as it was. Asked for every block of every step, hence without a loop in Python."""
        return bool(self.held) and all(map(is_, map(dict.get, self.held, self.names), self.things))

    def hooked(self) -> bool:
        """Whether anything hooks on a part, as adapters do: then the modules themselves must run."""
        return any(self.hooks)


class Plan:
    """A block as served.h wants it; `fits` says whether it can be one at all."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.fits = False
        self.block = native.Block()
        self.attention: SelfAttention

    def __reduce__(self) -> tuple[type[Plan], tuple[()]]:  # addresses are of no use to a copy
        return Plan, ()

    def current(self) -> bool:
        """Whether the block still consists of what this was made from."""
        return self.watch.current()

    def run(self, library: ctypes.CDLL, x: Tensor, ctx: Context) -> Tensor:
        """The block's output for x [B,T,D]."""
        a, block, step = self.attention, self.block, native.Step()  # a call's own: others may run in other threads
        x = x.contiguous()
        shape, threads = x.shape[:2], torch.get_num_threads()
        q = x.new_empty(*shape, block.heads, block.head_dim)
        k = x.new_empty(*shape, block.kv_heads, block.head_dim)
        v = torch.empty_like(k)
        y = torch.empty_like(x)
        step.rows, step.turned, step.x = x.numel() // block.dim, 0, x.data_ptr()
        if a.rope is not None:
            cos, sin = (table.contiguous() for table in ctx.rotary[a.rope])
            step.cos, step.sin, step.turned = cos.data_ptr(), sin.data_ptr(), cos.shape[-1]
        step.q, step.k, step.v, step.y = q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr()
        places = ctypes.addressof(block), ctypes.addressof(step), threads
        native.check(library.openbook_rows_before(*places))
        mixed = ctx.state.attend(a.index, q, k, v, a.rule()).contiguous()
        step.mixed = mixed.data_ptr()
        native.check(library.openbook_rows_after(*places))
        return y


def plan(block: ResidualBlock) -> Plan:
    """The plan of a block as it is now."""
    made = Plan()
    watch = made.watch
    branches = [watch.part(block.branches, name) for name in block.branches._modules]
    layers = [watch.part(branch, "layer") for branch in branches]
    shared = watch.part(block, "norm")
    if len(layers) != 2 or not isinstance(layers[0], SelfAttention) or not isinstance(layers[1], FeedForward):
        return made
    if any((branch.spec.place == "plain") != block.spec.parallel for branch in branches):
        return made
    attention, ffn = layers
    if ffn.spec.limit or ffn.spec.offset or not attention.common:
        return made
    linear = {name: watch.part(attention, name) for name in ("q", "k", "v", "out")}
    linear |= {name: watch.part(ffn, name) for name in ("gate", "up", "down")}
    heads = {name: watch.part(attention, name) for name in ("q_norm", "k_norm")}
    norms = [[watch.part(branch, name) for name in ("norm", "post_norm")] for branch in branches]
    if not _known(linear, [shared, *heads.values(), *norms[0], *norms[1]]):
        return made
    native_block = made.block
    native_block.parallel, native_block.neighbours = block.spec.parallel, attention.neighbours
    native_block.over = 0 if attention.norm is None else OVER[attention.norm.over]
    native_block.clip = attention.spec.clip or 0.0
    native_block.shared = _norm(shared) if block.spec.parallel else NONE
    native_block.attention, native_block.ffn = (_branch(branch) for branch in branches)
    native_block.head_q, native_block.head_k = (_norm(norm) for norm in heads.values())
    for name, part in linear.items():
        setattr(native_block, name, _matrix(part))
    size = attention.spec.head_dim
    native_block.dim, native_block.head_dim = linear["q"].shape[1], size
    native_block.heads, native_block.kv_heads = linear["q"].shape[0] // size, linear["k"].shape[0] // size
    native_block.hidden = linear["up"].shape[0]
    native_block.activation = rows.FUNCTIONS[ffn.spec.activation]
    made.attention, made.fits = attention, True
    return made


def _known(linear: Mapping[str, nn.Module | None], norms: list[nn.Module | None]) -> bool:
    usual = all(part is None or type(part) in (Packed, RowLinear) for part in linear.values())
    usual = usual and all(norm is None or type(norm) is Normalise for norm in norms)
    tensors = [t for part in (*linear.values(), *norms) if part is not None for t in part.parameters()]
    return usual and all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def _branch(branch: ResidualBranch) -> native.Branch:
    norm = _norm(branch.norm)
    match branch.spec.place:
        case "post":
            return native.Branch(NONE, NONE, norm, branch.spec.scale)
        case "after":
            return native.Branch(NONE, norm, NONE, branch.spec.scale)
        case _:
            return native.Branch(norm, _norm(branch.post_norm), NONE, branch.spec.scale)


def _norm(norm: Normalise | None) -> native.Norm:
    return NONE if norm is None else rows.norm_of(norm.spec, norm.weight, norm.bias)


def _matrix(part: Packed | RowLinear | None) -> native.Matrix:
    return native.Matrix() if part is None else native.Matrix.from_buffer_copy(part.matrix())
