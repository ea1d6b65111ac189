"""An array that grows in a file, a block at a time, and is then mapped, so that memory holds only what is read."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Column:
    """Rows of one type and shape; `add` while it is written, then `done`."""

    def __init__(self, path: Path, dtype: Any, *shape: int) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self.rows = 0
        self._file = path.open("wb")

    def add(self, block: NDArray[Any]) -> None:
        """Append rows."""
        data = np.ascontiguousarray(block, self.dtype).reshape(-1, *self.shape)
        self._file.write(data.data)
        self.rows += len(data)

    def done(self) -> NDArray[Any]:
        """All rows, [R, *shape]; changes to them go to the file."""
        self._file.close()
        if not self.rows:
            return np.zeros((0, *self.shape), self.dtype)
        return np.memmap(self.path, self.dtype, "r+", shape=(self.rows, *self.shape))


def release(array: NDArray[Any]) -> None:
    """Give back the memory that holds what was read of a mapped array; its content stays."""
    base: object = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
