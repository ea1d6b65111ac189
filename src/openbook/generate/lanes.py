"""A lane of the contiguous cache (cache.py): keys and values of the layers of one kind, in one block of columns.

Symbols: B rows, C columns, S visible columns, L layers of a lane, G kv heads, K and V head sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openbook.nn.state import PerToken

START = 256  # columns of a lane's first block
SLACK = 128  # columns a windowed lane may fill before it moves


class Lane:
    """Keys and values of the layers of one kind; `start` is the number of the first column that is still held."""

    def __init__(self, kind: PerToken, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kind = kind
        self.layers = 0
        self.start = 0
        self.first = 0  # the first column seen in this step
        self.keys = torch.empty(0, rows, 0, kind.kv_heads, kind.key_dim, dtype=dtype, device=device)
        values = 0 if kind.latent else kind.value_dim  # a latent value is a part of its key
        self.values = torch.empty(0, rows, 0, kind.kv_heads, values, dtype=dtype, device=device)
        self.write: list[tuple[Tensor, ...]] = []
        self.seen: list[tuple[Tensor, ...]] = []

    def open(self, used: int, tokens: int, first: int, capacity: int) -> None:
        """Makes room for `tokens` columns after `used`, of which those from `first` on are seen."""
        self.first = max(first, self.start)
        size = self.keys.shape[2]
        need = used + tokens - self.first
        if self.kind.window is None:
            if need > size:
                self._move(used, min(capacity, max(need, 2 * size, START)))
        elif used + tokens - self.start > size or size > 2 * need + 2 * SLACK:
            self._move(used, need + SLACK)
        at, end = used - self.start, used + tokens - self.start
        low = self.first - self.start
        # One unbind makes the views of all layers: cheaper than a slice in every layer.
        self.write = [block[:, :, at:end].unbind(0) for block in (self.keys, self.values)]
        values = self.keys[..., : self.kind.value_dim] if self.kind.latent else self.values
        self.seen = [block[:, :, low:end].unbind(0) for block in (self.keys, values)]

    def _move(self, used: int, size: int) -> None:
        low, high = self.first - self.start, used - self.start
        self.keys = self._moved(self.keys, low, high, size)
        self.values = self._moved(self.values, low, high, size)
        self.start = self.first

    def _moved(self, block: Tensor, low: int, high: int, size: int) -> Tensor:
        moved = empty(block, self.layers, block.shape[1], size)
        if high > low:
            moved[:, :, : high - low] = block[:, :, low:high]
        return moved

    def reorder(self, rows: Tensor, used: int) -> None:
        """Row i becomes what row `rows[i]` was."""
        high = used - self.start
        self.keys, self.values = (self._gather(block, rows, high) for block in (self.keys, self.values))

    def _gather(self, block: Tensor, rows: Tensor, high: int) -> Tensor:
        moved = empty(block, block.shape[0], len(rows), block.shape[2])
        if high > 0:
            torch.index_select(block[:, :, :high], 1, rows, out=moved[:, :, :high])
        return moved

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return self.keys.nbytes + self.values.nbytes


def empty(block: Tensor, layers: int, rows: int, columns: int) -> Tensor:
    """A block of the same kind, its numbers not set."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be written outside it
        return torch.empty(layers, rows, columns, *block.shape[3:], dtype=block.dtype, device=block.device)
