"""Branches, blocks and the stack: how residual steps are put together.

pre    x + s·f(norm x)                 GPT-2, Llama, T5, Mamba
post   norm(x + s·f x)                 the 2017 Transformer, BERT
both   x + s·norm₂(f(norm₁ x))         Gemma 2 and 3
after  x + s·norm(f x)                 OLMo 2
plain  f(norm x)                       parallel branches, recurrent networks
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openbook.nn import lean, served, spec
from openbook.nn.embed import position_bias
from openbook.nn.lean import Plan
from openbook.nn.norm import Normalise
from openbook.nn.rope import RotaryTable
from openbook.nn.state import Context, Stateful


class ResidualBranch(nn.Module):
    """One layer, its norm(s), and where they stand."""

    def __init__(self, branch: spec.Branch, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.spec = branch
        self.layer = layer
        self.norm = Normalise(branch.norm, dim) if branch.norm else None
        self.post_norm = Normalise(branch.norm, dim) if branch.norm and branch.place == "both" else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        place = self.spec.place
        step = self.layer(x if self.norm is None or place in ("post", "after") else self.norm(x), ctx)
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
    """Branches one after the other; or parallel, x + Σ f(norm x), each branch plain."""

    def __init__(self, block: spec.Block, branches: list[ResidualBranch], dim: int) -> None:
        super().__init__()
        self.spec = block
        self.norm = Normalise(block.norm, dim) if block.norm else None
        self.branches = nn.ModuleList(branches)
        self.lean: tuple[list[nn.Module | None], Plan | None] | None = None  # what lean.py knows of this block
        self.served: served.Plan | None = None  # what served.py knows of it

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if (out := served.run(self, x, ctx)) is not None:
            return out
        if lean.few(x) and (out := lean.run(self, x, ctx)) is not None:
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
        self.relative = position_bias(stack.relative) if stack.relative else None
        self.patterns = patterns
        self.tables = [RotaryTable(rope) for rope in ropes]
        self.checkpoints = False  # recompute each block in the backward pass

    def stateful(self) -> Iterator[Stateful]:
        """The layers that keep state, in order."""
        return (module for module in self.blocks.modules() if isinstance(module, Stateful))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.relative is not None:
            ctx.state.bias(self.relative, 0)
        for block in self.blocks:
            if self.checkpoints and self.training:
                x = checkpoint(block, x, ctx, use_reentrant=False)
            else:
                x = block(x, ctx)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return F.dropout(x, self.spec.dropout) if self.spec.dropout and self.training else x
