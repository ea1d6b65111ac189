"""Prediction of tokens beyond the next one, each depth from the one before (DeepSeek-AI 2024b, §2.2).

    h⁰ = the stack's last hidden states                     place t of them says token t + 1
    hᵏ = norm(block(join [norm(embed(token t + k)), norm(hᵏ⁻¹)]))             says token t + 1 + k, by the same head

The embedding and the language head are the model's own. Symbols: see shapes.py; k counts from 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbook.nn import spec
from openbook.nn.linear import Linear
from openbook.nn.norm import Normalise
from openbook.nn.stack import ResidualBlock
from openbook.nn.state import Context


class AheadStep(nn.Module):
    """One depth: embed_norm and hidden_norm [D], join [D,2D], a block, norm [D]."""

    def __init__(self, head: spec.MultiToken, block: ResidualBlock, dim: int) -> None:
        super().__init__()
        self.embed_norm = Normalise(head.norm, dim)
        self.hidden_norm = Normalise(head.norm, dim)
        self.join = Linear(2 * dim, dim)
        self.block = block
        self.norm = Normalise(head.norm, dim)

    def forward(self, embedded: Tensor, hidden: Tensor, ctx: Context) -> Tensor:
        """The embedding of token t + k and hᵏ⁻¹ at place t, both [B,T,D] → hᵏ."""
        x = self.join(torch.cat([self.embed_norm(embedded), self.hidden_norm(hidden)], dim=-1))
        out: Tensor = self.norm(self.block(x, ctx))
        return out


class AheadHead(nn.Module):
    """All depths, in order."""

    def __init__(self, head: spec.MultiToken, blocks: list[ResidualBlock], dim: int) -> None:
        super().__init__()
        self.spec = head
        self.steps = nn.ModuleList(AheadStep(head, block, dim) for block in blocks)


def shifted(values: Tensor, by: int, segments: Tensor | None, filler: int) -> Tensor:
    """values [B,T] from `by` places later in the same segment; `filler` where there is none. segments: see `Batch`."""
    moved = torch.full_like(values, filler)
    if by >= values.shape[1]:
        return moved
    later = values[:, by:]
    if segments is not None:
        same = (segments[:, by:] == segments[:, :-by]) & (segments[:, :-by] != 0)
        later = torch.where(same, later, filler)
    moved[:, : values.shape[1] - by] = later
    return moved
