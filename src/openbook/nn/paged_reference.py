"""Paged attention in plain PyTorch: the definition that native/paged.cpp is held to, and what works everywhere.

The softmax is taken piece by piece with a running greatest score (Dao et al. 2022), over pieces of 128 keys that lie
on a fixed grid, and begins anew every 512 keys, whose results are joined in order: what a query gets depends on nothing
but itself and the keys it sees. With bf16 and int8 pages queries and weights are rounded to bf16, as the matrix units
take them. Memory is linear in the length: a piece of scores is all that is ever made. Symbols: shapes.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from openbook.nn.pages import BLOCK, Layout, Pages, Walk

PIECE, CHUNK = 128, 512  # keys of one step of the softmax, and of one softmax
QUERIES = 64  # taken at a time
LEAST = -1e30  # below every score; finite, so that differences are


class Rule(NamedTuple):
    """How scores are made, and who sees whom."""

    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    bias: Tensor | None  # [H,longest], by distance
    sinks: Tensor | None  # [H]
    chunk: int | None = None

    def first(self, position: int) -> int:
        """The first key that a query there sees."""
        window = position - self.window + 1 if self.window else 0
        return max(0, window, position - position % self.chunk if self.chunk else 0)


def write(pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store k [T,G,K] and v [T,G,V] at `slots` [T]; -1: nowhere."""
    layout = pages.layout
    kept = slots >= 0
    places = slots[kept].long()
    block, key = places // BLOCK, places % BLOCK
    k, v = k[kept], v[kept]
    if layout.dtype == torch.float32:
        pages.keys[block, :, :, key] = k.float()
        if not layout.latent:
            pages.values[block, :, key] = pad(v.float(), (0, -layout.value_dim % 16))
        return
    if pages.scales is not None:
        k, scale = quantise(k)
        pages.scales[block, :, 0, key] = scale
        if not layout.latent:
            v, scale = quantise(v)
            pages.scales[block, :, 1, key] = scale
    k = pad(k, (0, -layout.key_dim % 32)).to(layout.dtype).unflatten(-1, (-1, 16, 2))
    pages.keys[block, :, key // 16, :, :, key % 16] = k
    if not layout.latent:
        v = pad(v, (0, -layout.value_dim % 16)).to(layout.dtype).unflatten(-1, (-1, 16))
        pages.values[block, :, :, key // 2, :, key % 2] = v


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T,G,K] as whole numbers -127..127 and their scales [T,G]. What is not finite makes the scale so."""
    x = x.float()
    scale = x.abs().amax(dim=-1) / 127
    whole = (x / scale.unsqueeze(-1)).round().nan_to_num(0, 0, 0).clamp(-127, 127)
    return whole, scale


def attend(pages: Pages, walk: Walk, q: Tensor, rule: Rule) -> Tensor:
    """q [T,H,K] → [T,H,V] in the type of q; rows of no sequence, and those that see nothing, are zero."""
    layout = pages.layout
    out = q.new_zeros(*q.shape[:2], layout.value_dim)
    starts, lengths = walk.starts.tolist(), walk.lengths.tolist()
    for i, length in enumerate(lengths):
        first, last = starts[i], starts[i + 1]
        for at in range(first, last, QUERIES):
            end = min(at + QUERIES, last)
            position = length - last + at if rule.causal else length - 1
            out[at:end] = _mix(pages, walk.table[i], length, q[at:end], position, rule).to(q.dtype)
    return out


class _Sums(NamedTuple):
    """What a softmax has taken in: greatest score and sum of weights [G,rows,1], mixed values [G,rows,V]."""

    top: Tensor
    total: Tensor
    mixed: Tensor

    def join(self, other: _Sums) -> _Sums:
        top = torch.maximum(self.top, other.top)
        mine, others = (self.top - top).exp(), (other.top - top).exp()
        return _Sums(top, self.total * mine + other.total * others, self.mixed * mine + other.mixed * others)


def _mix(pages: Pages, table: Tensor, length: int, q: Tensor, position: int, rule: Rule) -> Tensor:
    """Queries q [n,H,K] of one sequence, the first at `position`: [n,H,V]."""
    layout, device = pages.layout, q.device
    count, heads, _ = q.shape
    group = heads // layout.kv_heads
    if layout.dtype != torch.float32:
        q = q.bfloat16()
    rows = q.float().unflatten(1, (-1, group)).permute(1, 0, 2, 3).flatten(1, 2)  # [G,n·group,K]
    last = position + count - 1 if rule.causal else position
    begin = rule.first(position)
    empty = _nothing(rows, layout)
    sums = empty
    for chunk in range(begin // CHUNK * CHUNK, min(last + 1, length), CHUNK):
        part = empty
        for piece in range(chunk, min(chunk + CHUNK, last + 1, length), PIECE):
            if piece + PIECE > begin:
                until = min(piece + PIECE, last + 1, length)
                start = max(piece, begin // BLOCK * BLOCK)  # pages before were given back
                keys = torch.arange(start, until, device=device)
                part = _take(part, pages, table, rows, keys, position, rule, group)
        sums = sums.join(part)
    if rule.sinks is not None:
        sink = rule.sinks.float().view(layout.kv_heads, 1, group).expand(-1, count, -1).reshape(*sums.top.shape)
        sums = sums.join(_Sums(sink, torch.ones_like(sink), torch.zeros_like(sums.mixed)))
    mixed = torch.where(sums.total == 0, 0.0, sums.mixed / sums.total)
    return mixed.unflatten(1, (count, group)).permute(1, 0, 2, 3).flatten(1, 2)


def _nothing(rows: Tensor, layout: Layout) -> _Sums:
    top = rows.new_full((*rows.shape[:2], 1), LEAST)
    return _Sums(top, torch.zeros_like(top), rows.new_zeros(*rows.shape[:2], layout.value_dim))


def _take(
    sums: _Sums, pages: Pages, table: Tensor, rows: Tensor, keys: Tensor, position: int, rule: Rule, group: int
) -> _Sums:
    """Take in the tokens `keys` [s], consecutive numbers from the first of a block on."""
    layout = pages.layout
    pieces = keys[::BLOCK] // BLOCK
    blocks = table[pieces // layout.blocks].long() * layout.blocks + pieces % layout.blocks
    k, v, scales = (
        x if x is None else x[: len(keys)].transpose(0, 1) for x in pages.gather(blocks)
    )  # [G,s,K], [G,s,V]
    assert k is not None
    assert v is not None
    scores = rows @ k.transpose(1, 2)  # [G,rows,s]
    if scales is not None:
        scores = scores * scales[..., :1].transpose(1, 2)
    scores = scores * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if rule.causal:
        stand = position + torch.arange(rows.shape[1], device=rows.device) // group
        distance = stand.unsqueeze(1) - keys  # [rows,s]
        if rule.bias is not None:
            count = rows.shape[1] // group
            far = distance[::group].clamp(0, rule.bias.shape[1] - 1)  # [n,s]
            slope = rule.bias.float()[:, far].unflatten(0, (-1, group)).transpose(1, 2)  # [G,n,group,s]
            scores = scores + slope.reshape(layout.kv_heads, count * group, -1)
        seen = (distance >= 0) & (distance < (rule.window or 1 << 30))
        if rule.chunk is not None:
            seen = seen & (stand.unsqueeze(1) // rule.chunk == keys // rule.chunk)
        scores = scores.masked_fill(~seen, float("-inf"))
    top = torch.maximum(sums.top, scores.amax(dim=-1, keepdim=True).nan_to_num(LEAST, neginf=LEAST))
    weights = (scores - top).exp()
    total = weights.sum(dim=-1, keepdim=True)
    if scales is not None:
        weights = weights * scales[..., -1:].transpose(1, 2)
    if layout.dtype != torch.float32:
        weights = weights.bfloat16().float()
    kept = (sums.top - top).exp()
    return _Sums(top, sums.total * kept + total, sums.mixed * kept + weights @ v)
