"""Pages of keys and values: what a page of one layer looks like, the storage of one layer, and a step's way over it.

A page holds `page` tokens of every key/value head, cut into blocks of 32 tokens. A block of one head is one run of
bytes, laid out so that the matrix units of a CPU read it as it lies (native/paged.cpp); `Pages.keys`, `.values` and
`.scales` are views of the same bytes by strides, for everybody else:

    bfloat16   keys [2 halves of 16 keys, dim/32, 16 pairs of dims, 16 keys, 2]
               values [value/16, 16 pairs of keys, 16 values, 2]
    int8       the same as whole numbers, and a scale of each token for keys and for values
    float32    keys [dim, 32 keys], values [32 keys, value]

Dims are padded with zeros to 32 (keys) and 16 (values). A latent page (multi-head latent attention, DeepSeek-AI 2024)
has one head whose value is a prefix of its key, and stores it once. Paging itself: Kwon et al. 2023.
Symbols: shapes.py.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook.errors import InputError

BLOCK = 32  # tokens
LARGE = 1 << 22  # bytes of memory worth large pages
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def padded(count: int, size: int) -> int:
    """`count` rounded up to a multiple of `size`."""
    return -(-count // size) * size


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a page of one layer is. int8 has one fp32 scale for each token and head."""

    kv_heads: int
    key_dim: int
    value_dim: int
    page: int = 32  # tokens
    dtype: torch.dtype = torch.bfloat16
    latent: bool = False  # the value is a prefix of the key of the only head: stored once

    def __post_init__(self) -> None:
        if self.page < BLOCK or self.page % BLOCK:
            raise InputError(f"A page must hold a multiple of {BLOCK} tokens: got page={self.page}. Use {BLOCK} or 64.")
        if self.dtype not in DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise InputError(f"Pages cannot hold {str(self.dtype).removeprefix('torch.')}. Use one of {names}.")
        if self.latent and (self.kv_heads != 1 or self.value_dim > self.key_dim):
            raise InputError(
                "A latent page has one head whose value is a prefix of its key: "
                f"got kv_heads={self.kv_heads}, key_dim={self.key_dim}, value_dim={self.value_dim}."
            )

    @property
    def blocks(self) -> int:
        """Blocks of a page."""
        return self.page // BLOCK

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys of one block of one head."""
        if self.dtype == torch.float32:
            return BLOCK * self.key_dim * 4
        return BLOCK * padded(self.key_dim, 32) * self.dtype.itemsize

    @property
    def value_bytes(self) -> int:
        """Bytes of the values of one block of one head."""
        return 0 if self.latent else BLOCK * padded(self.value_dim, 16) * self.dtype.itemsize

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales of one block of one head."""
        return 0 if self.dtype != torch.int8 else BLOCK * 4 * (1 if self.latent else 2)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one head, everything included."""
        return self.key_bytes + self.value_bytes + self.scale_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of one page of one layer, everything included."""
        return self.blocks * self.kv_heads * self.block_bytes


def reserve(size: int, device: torch.device | str) -> Tensor:
    """So many bytes that nobody has touched; on Linux in large pages of memory, for a walk jumps far and often."""
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux") or size < LARGE:
        return torch.empty(size, dtype=torch.uint8, device=device)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)


class Pages:
    """The storage of one layer: `count` pages. Memory is reserved, and not touched until it is written."""

    def __init__(self, layout: Layout, count: int, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.count = count
        heads, size = layout.kv_heads, layout.block_bytes
        self.data = reserve(count * layout.nbytes, device).view(count * layout.blocks, heads, size)
        keys = self.data[..., : layout.key_bytes].view(layout.dtype)
        values = self.data[..., layout.key_bytes : layout.key_bytes + layout.value_bytes].view(layout.dtype)
        if layout.dtype == torch.float32:
            self.keys = keys.unflatten(-1, (layout.key_dim, BLOCK))  # [blocks,G,K,32]
            self.values = values.unflatten(-1, (BLOCK, -1))  # [blocks,G,32,V]
        else:
            self.keys = keys.unflatten(-1, (2, -1, 16, 16, 2))  # [blocks,G,half,dim/32,pair of dims,key,2]
            self.values = values.unflatten(-1, (-1, 16, 16, 2))  # [blocks,G,value/16,pair of keys,value,2]
        self.scales: Tensor | None = None
        if layout.dtype == torch.int8:
            scales = self.data[..., layout.key_bytes + layout.value_bytes :].view(torch.float32)
            self.scales = scales.unflatten(-1, (-1, BLOCK))  # [blocks,G,keys and values,32]

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole pages, `sources[i]` to `targets[i]` (copy on write)."""
        if sources:
            device = self.data.device
            pages = self.data.unflatten(0, (self.count, -1))
            pages[torch.tensor(targets, device=device)] = pages[torch.tensor(sources, device=device)]

    def read(self, pages: list[int], length: int) -> tuple[Tensor, Tensor]:
        """The first `length` tokens that stand in these pages: keys [length,G,K] and values [length,G,V], fp32."""
        each = self.layout.blocks
        table = torch.tensor(pages, dtype=torch.int64, device=self.data.device).unsqueeze(1) * each
        blocks = (table + torch.arange(each, device=self.data.device)).flatten()[: -(-length // BLOCK)]
        keys, values, scales = self.gather(blocks)
        if scales is not None:
            keys, values = keys * scales[:, :, :1], values * scales[:, :, -1:]
        return keys[:length], values[:length]

    def gather(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys [S,G,K] and values [S,G,V] of these blocks in fp32, before their scales [S,G,1 or 2]."""
        layout = self.layout
        if layout.dtype == torch.float32:
            keys = self.keys[blocks].permute(0, 3, 1, 2).flatten(0, 1)  # [n,G,K,32] → [S,G,K]
        else:
            keys = self.keys[blocks].permute(0, 2, 5, 1, 3, 4, 6).flatten(4).flatten(0, 2)  # [S,G,padded K]
        keys = keys[..., : layout.key_dim].float()
        if layout.latent:
            values = keys[..., : layout.value_dim]
        elif layout.dtype == torch.float32:
            values = self.values[blocks].transpose(1, 2).flatten(0, 1)
        else:
            values = self.values[blocks].permute(0, 3, 5, 1, 2, 4).flatten(4).flatten(0, 2)  # [S,G,padded V]
        values = values[..., : layout.value_dim].float()
        scales = None if self.scales is None else self.scales[blocks].permute(0, 3, 1, 2).flatten(0, 1)
        return keys, values, scales


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The tables of one group of pages for one step; int32 and dense, where the pages are."""

    table: Tensor  # [N,P] page numbers of each sequence in order; given back or unused: 0, never looked at
    starts: Tensor  # [N+1] rows starts[i]:starts[i+1] of the step belong to sequence i
    lengths: Tensor  # [N] tokens of the sequence at the end of this step, or of its source (cross attention)
    slots: Tensor  # [T] where each new token is written: page·size + offset; -1: nowhere

    @functools.cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where the tables are, N and P: the same for all layers of a step."""
        tables = (self.table, self.starts, self.lengths, self.slots)
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in tables), "tables of a walk are dense int32"
        return *(x.data_ptr() for x in tables), *self.table.shape
