# mypy: ignore-errors
"""Paged attention on a GPU: the walk of paged_reference as Triton kernels over the same pages, read by strides.

A program takes one sequence, one key/value head and every n-th tile of its query rows (queries x the heads that share
the keys), and walks the blocks of 32 keys in order with a running top (Dao et al. 2022). Each row's sums depend on its
own keys alone, for tiles have one size and the walk one order. Loaded only where pages lie on a GPU; the tests run it
in Triton's interpreter. Symbols: shapes.py.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from openbook.nn.paged_reference import Rule
from openbook.nn.pages import BLOCK, Pages, Walk

ROWS = 16  # of a tile
PARTS = 32  # programs that share the tiles of one sequence and head, at most


def write(pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """See `paged.write`."""
    layout = pages.layout
    if not len(slots):
        return
    v = k if layout.latent else v
    _write[len(slots), layout.kv_heads](
        _numbers(pages),
        pages.data.view(torch.float32),
        k,
        v,
        slots,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        **_shape(pages),
    )


def attend(pages: Pages, walk: Walk, q: Tensor, rule: Rule) -> Tensor:
    """See `paged.attend`."""
    layout = pages.layout
    out = q.new_zeros(*q.shape[:2], layout.value_dim)
    tokens, heads, _ = q.shape
    group = heads // layout.kv_heads
    parts = min(PARTS, triton.cdiv(tokens * group, ROWS))
    if not tokens or not len(walk.lengths):
        return out
    bias = q if rule.bias is None else rule.bias.float().contiguous()
    sinks = q if rule.sinks is None else rule.sinks.float().contiguous()
    _attend[len(walk.lengths), layout.kv_heads, parts](
        _numbers(pages),
        pages.data.view(torch.float32),
        walk.table,
        walk.starts,
        walk.lengths,
        q,
        out,
        bias,
        sinks,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        walk.table.stride(0),
        bias.shape[1],
        rule.window or 1 << 30,
        rule.chunk or 1 << 30,
        rule.scale,
        rule.softcap or 1.0,
        group=group,
        causal=rule.causal,
        capped=rule.softcap is not None,
        biased=rule.bias is not None,
        sunk=rule.sinks is not None,
        blocks=layout.blocks,
        wide=os.environ.get("TRITON_INTERPRET") == "1",  # it multiplies the bits of bf16
        ROWS=ROWS,
        **_shape(pages),
    )
    return out


def _numbers(pages: Pages) -> Tensor:
    return pages.data.view(pages.layout.dtype)


def _shape(pages: Pages) -> dict[str, int | bool]:
    """Sizes that kernels are made for; offsets are in numbers of the pages, and in floats for the scales."""
    layout = pages.layout
    size = layout.dtype.itemsize
    return {
        "heads": layout.kv_heads,
        "key_dim": layout.key_dim,
        "value_dim": layout.value_dim,
        "keys": triton.next_power_of_2(max(32, layout.key_dim)),
        "values": triton.next_power_of_2(max(16, layout.value_dim)),
        "block": layout.block_bytes // size,
        "key_half": 0 if size == 4 else layout.key_bytes // size // 2,
        "key_size": layout.key_bytes // size,
        "value_row": -(-layout.value_dim // 16) * 16,
        "scale_block": layout.block_bytes // 4,
        "scale_start": (layout.key_bytes + layout.value_bytes) // 4,
        "single": size == 4,
        "whole": size == 1,
        "latent": layout.latent,
        "BLOCK": BLOCK,
    }


@triton.jit
def _key_place(key, dim, key_half, single, BLOCK: tl.constexpr):
    """Where number `dim` of key `key` stands in a block of one head."""
    if single:
        return dim * BLOCK + key
    return (key // 16) * key_half + (dim // 2) * 32 + (key % 16) * 2 + dim % 2


@triton.jit
def _value_place(key, dim, key_half, key_size, value_row, single, latent, BLOCK: tl.constexpr):
    """Where number `dim` of the value of `key` stands."""
    if latent:
        return _key_place(key, dim, key_half, single, BLOCK)
    if single:
        return key_size + key * value_row + dim
    return key_size + (dim // 16) * 512 + (key // 2) * 32 + (dim % 16) * 2 + key % 2


@triton.jit
def _quantise(x):
    """Whole numbers and their scale; adding 1.5 · 2^23 rounds."""
    scale = tl.max(tl.abs(x), axis=0) / 127.0
    whole = (x / scale + 12582912.0) - 12582912.0
    return tl.where(tl.abs(whole) <= 127.0, whole, 0.0), scale


@triton.jit
def _product(x, y, wide):
    if wide:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision="ieee")
    return tl.dot(x, y, input_precision="ieee")


# fmt: off
@triton.jit
def _write(
    pages, scales, k, v, slots, k_token, k_head, v_token, v_head, heads: tl.constexpr, key_dim: tl.constexpr,
    value_dim: tl.constexpr, keys: tl.constexpr, values: tl.constexpr, block: tl.constexpr,
    key_half: tl.constexpr, key_size: tl.constexpr, value_row: tl.constexpr, scale_block: tl.constexpr,
    scale_start: tl.constexpr, single: tl.constexpr, whole: tl.constexpr, latent: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + token)
    if slot >= 0:
        key = slot % BLOCK
        place = (slot // BLOCK).to(tl.int64) * heads + head
        dim = tl.arange(0, keys)
        x = tl.load(k + token * k_token + head * k_head + dim, mask=dim < key_dim, other=0.0).to(tl.float32)
        stored = key_dim if single else key_size // BLOCK  # zeros up to there
        if whole:
            x, scale = _quantise(x)
            tl.store(scales + place * scale_block + scale_start + key, scale)
        to = pages + place * block
        at = _key_place(key, dim, key_half, single, BLOCK)
        tl.store(to + at, x.to(pages.dtype.element_ty), mask=dim < stored)
        if not latent:
            dim = tl.arange(0, values)
            x = tl.load(v + token * v_token + head * v_head + dim, mask=dim < value_dim, other=0.0).to(tl.float32)
            if whole:
                x, scale = _quantise(x)
                tl.store(scales + place * scale_block + scale_start + BLOCK + key, scale)
            at = _value_place(key, dim, key_half, key_size, value_row, single, latent, BLOCK)
            tl.store(to + at, x.to(pages.dtype.element_ty), mask=dim < value_row)


@triton.jit
def _attend(
    pages, scales, table, starts, lengths, q, out, bias, sinks, q_token, q_head, out_token, out_head, width,
    bias_length, window, chunk, scale, softcap, group: tl.constexpr, causal: tl.constexpr, capped: tl.constexpr,
    biased: tl.constexpr, sunk: tl.constexpr, wide: tl.constexpr, ROWS: tl.constexpr, heads: tl.constexpr,
    key_dim: tl.constexpr, value_dim: tl.constexpr, keys: tl.constexpr, values: tl.constexpr,
    block: tl.constexpr, key_half: tl.constexpr, key_size: tl.constexpr, value_row: tl.constexpr,
    scale_block: tl.constexpr, scale_start: tl.constexpr, blocks: tl.constexpr, single: tl.constexpr,
    whole: tl.constexpr, latent: tl.constexpr, BLOCK: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + sequence)
    queries = tl.load(starts + sequence + 1) - start
    length = tl.load(lengths + sequence)
    key, dim, part = tl.arange(0, BLOCK), tl.arange(0, keys), tl.arange(0, values)
    for first in range(tl.program_id(2) * ROWS, queries * group, tl.num_programs(2) * ROWS):
        row = first + tl.arange(0, ROWS)
        real = row < queries * group
        token, of = start + row // group, head * group + row % group
        inside = real[:, None] & (dim[None, :] < key_dim)
        x = tl.load(q + token[:, None] * q_token + of[:, None] * q_head + dim[None, :], mask=inside, other=0.0)
        x = x.to(tl.float32) if single else x.to(tl.bfloat16)
        position = length - queries + row // group if causal else tl.zeros_like(row) + length - 1
        top = tl.full([ROWS], -1e30, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, values], tl.float32)
        last = tl.minimum(length, tl.max(tl.where(real, position, -1), axis=0) + 1)
        lowest = tl.min(position, axis=0)
        begin = tl.maximum(tl.maximum(0, lowest - window + 1), lowest // chunk * chunk)
        for base in range(begin // BLOCK * BLOCK, last, BLOCK):
            page = tl.load(table + sequence * width + base // BLOCK // blocks).to(tl.int64)
            place = (page * blocks + base // BLOCK % blocks) * heads + head
            written = base + key < length
            at = _key_place(key[None, :], dim[:, None], key_half, single, BLOCK)
            k = tl.load(pages + place * block + at, mask=(dim[:, None] < key_dim) & written[None, :], other=0)
            k = k.to(tl.float32)  # whole numbers by way of fp32
            if not single:
                k = k.to(tl.bfloat16)
            scores = _product(x, k, wide)
            if whole:
                from_scales = scales + place * scale_block + scale_start + key
                scores *= tl.load(from_scales, mask=written, other=0.0)[None, :]
            scores *= scale
            if capped:
                scores = (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * softcap
            distance = position[:, None] - base - key[None, :]
            if biased:
                far = tl.minimum(tl.maximum(distance, 0), bias_length - 1)
                scores += tl.load(bias + of[:, None] * bias_length + far, mask=real[:, None], other=0.0)
            seen = (distance >= 0) & written[None, :]
            if causal:
                seen = seen & (distance < window)
                seen = seen & (position[:, None] // chunk == (base + key[None, :]) // chunk)
            scores = tl.where(seen, scores, float("-inf"))
            high = tl.maximum(top, tl.max(scores, axis=1))
            weights = tl.exp(scores - high[:, None])
            kept = tl.exp(top - high)
            total = total * kept + tl.sum(weights, axis=1)
            if whole:
                side = 0 if latent else BLOCK
                weights *= tl.load(from_scales + side, mask=written, other=0.0)[None, :]
            at = _value_place(key[:, None], part[None, :], key_half, key_size, value_row, single, latent, BLOCK)
            v = tl.load(pages + place * block + at, mask=written[:, None] & (part[None, :] < value_dim), other=0)
            v = v.to(tl.float32)
            if not single:
                weights = weights.to(tl.bfloat16)
                v = v.to(tl.bfloat16)
            mixed = mixed * kept[:, None] + _product(weights, v, wide)
            top = high
        if sunk:
            sink = tl.load(sinks + of, mask=real, other=0.0)
            high = tl.maximum(top, sink)
            total = total * tl.exp(top - high) + tl.exp(sink - high)
            mixed *= tl.exp(top - high)[:, None]
        mixed = tl.where(total[:, None] == 0.0, 0.0, mixed / total[:, None])
        to = out + token[:, None] * out_token + of[:, None] * out_head + part[None, :]
        tl.store(to, mixed.to(out.dtype.element_ty), mask=real[:, None] & (part[None, :] < value_dim))
