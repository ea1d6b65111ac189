"""A window's attention in blocks: time and memory grow with the row's length, not with its square.

The row is cut into blocks of `size` queries. A block sees the blocks that its window reaches, `back` before it and
`ahead` after it, and beside them the marked tokens (Beltagy et al. 2020, §3.1). What is in reach of whom is said by one
table for all layers, so that a block is an attention like any other: `attend.mix` does the rest, and what a query gets
is what the mask of the whole row would give it.

    keys of block n      [ n - back | … | n | … | n + ahead | marked ]        S = (back + 1 + ahead) · size + M

Symbols: N blocks, S keys of a block, M marked tokens; see shapes.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.nn.marks import Marks, pick
from openbook.nn.spec import Pattern

LEAST = 256  # tokens below which one mask for the whole row costs as little
SMALLEST = 32  # queries of a block


class Band(NamedTuple):
    """Who sees whom in blocks. `bias` [B or 1,N,size,S] is 0 where a query looks and -inf elsewhere."""

    size: int
    back: int
    ahead: int
    bias: Tensor
    marks: Marks | None


def fits(pattern: Pattern, tokens: int) -> bool:
    """Whether a row of so many tokens is better cut into blocks."""
    if pattern.window is None or pattern.chunk is not None or pattern.marked == "prefix":
        return False
    return tokens >= max(LEAST, (2 if pattern.causal else 3) * pattern.window)


def band(pattern: Pattern, tokens: int, segments: Tensor | None, marks: Marks | None, device: torch.device) -> Band:
    """The blocks of rows of `tokens` tokens. Tokens see their own segment; padding (0) sees itself alone."""
    assert pattern.window is not None
    reach = pattern.window - 1
    size = max(SMALLEST, math.ceil(reach / 2))
    back = math.ceil(reach / size)
    ahead = 0 if pattern.causal else back
    count = -(-tokens // size)
    keys = torch.arange(-back * size, (ahead + 1) * size, device=device)  # [S], from the block's first token
    distance = torch.arange(size, device=device).unsqueeze(1) - keys  # [size,S], the same in every block
    near = distance.abs() <= reach
    if pattern.causal:
        near = near & (distance >= 0)
    there = torch.arange(count, device=device).view(count, 1, 1) * size + keys  # [N,1,S]
    seen = (near & (there >= 0) & (there < tokens)).unsqueeze(0)  # [1,N,size,S]
    if segments is not None:
        numbers = F.pad(segments, (0, count * size - tokens)).view(len(segments), count, size, 1)
        others = _reached(numbers.flatten(1, 2), count, back, ahead).transpose(2, 3)  # [B,N,1,S]
        seen = seen & (numbers == others) & (numbers != 0)
    if marks is not None:  # they are seen beside the window, and once
        flags = F.pad(marks.flags, (0, count * size - tokens)).unsqueeze(2)
        seen = seen & ~_reached(flags, count, back, ahead).transpose(2, 3)
        beside = marks.real[:, None, None]  # [B,1,1,M]
        if segments is not None:
            beside = beside & (numbers == segments.gather(1, marks.places)[:, None, None])
        seen = torch.cat([seen, beside.expand(-1, count, size, -1)], dim=3)
    itself = F.pad(distance == 0, (0, 0 if marks is None else marks.places.shape[1]))
    if marks is not None:  # a marked token sees itself among the marked
        itself = itself & ~flags.view(len(flags), count, size, 1)
    seen = seen | itself  # padding too, so that no row of scores is empty and no gradient is NaN
    bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)
    return Band(size, back, ahead, bias, marks)


def _reached(x: Tensor, count: int, back: int, ahead: int) -> Tensor:
    """The tokens that each block reaches: [B,N·size,..] → [B,N,(back + 1 + ahead)·size,..]."""
    size = x.shape[1] // count
    around = [0] * (2 * (x.ndim - 2)) + [back * size, ahead * size]
    blocks = F.pad(x, around).unflatten(1, (-1, size))
    return torch.cat([blocks[:, shift : shift + count] for shift in range(back + 1 + ahead)], dim=2)


def cut(q: Tensor, k: Tensor, v: Tensor, blocks: Band) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [B,T,H,K], k [B,T,G,K], v [B,T,G,V] as blocks [B·N,size,H,K], [B·N,S,G,·] twice, and a bias [B·N,1,size,S]."""
    count = blocks.bias.shape[1]
    rest = count * blocks.size - q.shape[1]
    keys = []
    for x in (k, v):
        near = _reached(F.pad(x, (0, 0, 0, 0, 0, rest)), count, blocks.back, blocks.ahead)  # [B,N,S,G,·]
        if blocks.marks is not None:
            marked = pick(x, blocks.marks).unsqueeze(1)
            near = torch.cat([near, marked.expand(-1, count, -1, -1, -1)], dim=2)
        keys.append(near.flatten(0, 1))
    queries = F.pad(q, (0, 0, 0, 0, 0, rest)).unflatten(1, (count, blocks.size)).flatten(0, 1)
    bias = blocks.bias.expand(q.shape[0], -1, -1, -1).flatten(0, 1).unsqueeze(1)
    return queries, keys[0], keys[1], bias.to(q.dtype)


def join(mixed: Tensor, rows: int, tokens: int) -> Tensor:
    """The blocks' output [B·N,size,H,V] as rows again, [B,T,H,V]."""
    return mixed.unflatten(0, (rows, -1)).flatten(1, 2)[:, :tokens]
