"""Branches, blocks and the stack: how residual steps are put together.

pre    x + s·f(norm x)                 GPT-2, Llama, T5, Mamba
post   norm(x + s·f x)                 the 2017 Transformer, BERT
both   x + s·norm₂(f(norm₁ x))         Gemma 2 and 3
after  x + s·norm(f x)                 OLMo 2
plain  f(norm x)                       parallel branches, recurrent networks
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openbook.nn import lean, served, spec
from openbook.nn.disentangled import DistanceTable
from openbook.nn.embed import LinearBias, RelativeBias, position_bias
from openbook.nn.lean import Plan
from openbook.nn.linear import Linear
from openbook.nn.norm import Normalise
from openbook.nn.rope import RotaryTable
from openbook.nn.state import Context, Declaration, Dense, Later, Stateful


class ResidualBranch(nn.Module):
    """One layer, its norm(s), and where they stand."""

    def __init__(self, branch: spec.Branch, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.spec = branch
        self.layer = layer
        self.norm = Normalise(branch.norm, dim) if branch.norm else None
        self.post_norm = Normalise(branch.norm, dim) if branch.norm and branch.place == "both" else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.step(x, self.read(x, ctx))

    def read(self, x: Tensor, ctx: Context) -> Tensor:
        """What the layer says to x."""
        after = self.spec.place in ("post", "after")
        return self.layer(x if self.norm is None or after else self.norm(x), ctx)

    def step(self, x: Tensor, step: Tensor) -> Tensor:
        """The residual step from x by what the layer said."""
        place = self.spec.place
        if place == "after" and self.norm is not None:
            step = self.norm(step)
        if self.post_norm is not None:
            step = self.post_norm(step)
        if self.spec.dropout and self.training:
            step = F.dropout(step, self.spec.dropout)
        if self.spec.scale != 1.0:
            step = step * self.spec.scale
        if place == "plain":
            return step
        x = x + step
        return self.norm(x) if place == "post" and self.norm is not None else x


class ResidualBlock(nn.Module):
    """Branches one after the other, or parallel, x + Σ f(norm x), each branch plain; then the one that stands aside."""

    def __init__(
        self, block: spec.Block, branches: list[ResidualBranch], dim: int, aside: ResidualBranch | None = None
    ) -> None:
        super().__init__()
        self.spec = block
        self.norm = Normalise(block.norm, dim) if block.norm else None
        self.branches = nn.ModuleList(branches)
        self.aside = aside
        self.lean: tuple[list[nn.Module | None], Plan | None] | None = None  # what lean.py knows of this block
        self.served: served.Plan | None = None  # what served.py knows of it

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        out = self._run(x, ctx)
        return out if self.aside is None else self.aside.step(out, self.aside.read(x, ctx))

    def _run(self, x: Tensor, ctx: Context) -> Tensor:
        if (out := served.run(self, x, ctx)) is not None:
            return out
        if not self.training and lean.few(x) and (out := lean.run(self, x, ctx)) is not None:
            return out
        if not self.spec.parallel:
            for branch in self.branches:
                x = branch(x, ctx)
            return x
        shared = x if self.norm is None else self.norm(x)
        return sum((branch(shared, ctx) for branch in self.branches), start=x)


class Tower(nn.Module):
    """A stack: blocks of one width, the final norm, the position bias all layers share, and the rotary tables."""

    def __init__(
        self,
        stack: spec.Stack,
        blocks: list[ResidualBlock],
        patterns: tuple[spec.Pattern, ...],
        ropes: tuple[spec.Rope, ...],
    ) -> None:
        super().__init__()
        self.spec = stack
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = Normalise(stack.final_norm, stack.dim) if stack.final_norm else None
        self.relative: LinearBias | RelativeBias | DistanceTable | None = None
        match stack.relative:
            case None:
                pass
            case spec.RelativeVectors():
                self.relative = DistanceTable(stack.relative, stack.dim)
            case _:
                self.relative = position_bias(stack.relative)
        self.out = None if stack.out is None else Linear(stack.dim, stack.out)
        self.patterns = patterns
        self.tables = [RotaryTable(rope) for rope in ropes]
        self.checkpoints = False  # recompute each block in the backward pass
        self.shifts: list[int] = []  # of each step: what its block's first index of state is moved by

    def number(self) -> tuple[Declaration, ...]:
        """Give every layer that keeps state its index; what they keep, in order.

        A block that runs again keeps another state each time: its layers' indices are those of its first run, moved.
        """
        kept: list[Declaration] = []
        first: dict[int, int] = {}
        self.shifts = []
        for number in self.order:
            layers = [module for module in self.blocks[number].modules() if isinstance(module, Stateful)]
            if number not in first:
                first[number] = len(kept)
                for index, layer in enumerate(layers, start=len(kept)):
                    layer.index = index
            self.shifts.append(len(kept) - first[number])
            kept += [layer.declare() for layer in layers]
        return tuple(kept)

    @property
    def order(self) -> Sequence[int]:
        """The number of the block that each step runs."""
        return range(len(self.blocks)) if self.spec.order is None else self.spec.order

    def prepare(self, ctx: Context, dtype: torch.dtype) -> Context:
        """With what all layers share: the position bias is handed to the state, vectors of positions to the layers."""
        match self.relative:
            case DistanceTable():
                alike = ctx.state.segments is None
                return ctx._replace(vectors=self.relative(ctx.state.positions, alike, dtype))
            case LinearBias() | RelativeBias():
                ctx.state.bias(self.relative, 0)
        return ctx

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        ctx = self.prepare(ctx, x.dtype)
        for number, shift in zip(self.order, self.shifts, strict=True):
            block = self.blocks[number]
            if ctx.layers is not None:
                ctx.layers.append(x)
            again = shift and not isinstance(ctx.state, Dense)  # which keeps nothing
            now = ctx._replace(state=Later(ctx.state, shift)) if again else ctx
            if self.checkpoints and self.training:
                x = checkpoint(block, x, now, use_reentrant=False)
            else:
                x = block(x, now)
        if ctx.layers is not None:
            ctx.layers.append(x)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        return x if self.out is None else self.out(x)
