"""An array that grows in a file, a block at a time, and is then read through the system's page cache."""

from __future__ import annotations

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
        """All rows, [R, *shape]; changes to them stay in this process."""
        self._file.close()
        if not self.rows:
            return np.zeros((0, *self.shape), self.dtype)
        return np.memmap(self.path, self.dtype, "c", shape=(self.rows, *self.shape))
