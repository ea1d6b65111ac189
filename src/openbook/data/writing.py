"""One shard of prepared text while it is written; `shards.py` says what its files are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from openbook.data.shards import ORIGIN, names, origins_name
from openbook.files import sync_folder


class ShardWriter:
    """One shard while it is written: ids go to the disk as they come, under a name that is not yet the shard's."""

    def __init__(self, folder: Path, number: int, dtype: str) -> None:
        self.folder, self.number, self.dtype = folder, number, np.dtype(dtype)
        self.records: list[NDArray[Any]] = []
        self.origins: list[tuple[int, int, int]] = []
        self.tokens = 0
        self.part = folder / f"tokens-{number:05d}.part"
        self.file: BinaryIO = self.part.open("wb")
        self.sha = hashlib.sha256()

    def add(self, ids: NDArray[Any], records: NDArray[Any], origins: Sequence[tuple[int, int, int]]) -> None:
        """More pieces: their ids, one behind the other, their `PIECE` and their `ORIGIN` records."""
        data = ids.tobytes()
        self.file.write(data)
        self.sha.update(data)
        self.tokens += len(ids)
        self.records.append(records)
        self.origins += origins

    def close(self) -> dict[str, Any]:
        """Make the shard durable and say what the manifest should know of it."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        tokens_name, pieces_name = names(self.number)
        records = np.concatenate(self.records)
        pieces = self._write(pieces_name, records)
        origins = self._write(origins_name(self.number), np.array(self.origins, dtype=ORIGIN))
        os.replace(self.part, self.folder / tokens_name)
        sync_folder(self.folder)
        return {
            "tokens": self.tokens, "tokens_sha256": self.sha.hexdigest(),
            "pieces": len(records), "pieces_sha256": pieces, "origins_sha256": origins,
        }  # fmt: skip

    def _write(self, name: str, records: NDArray[Any]) -> str:
        """Write records durably; their checksum."""
        data = records.tobytes()
        with (self.folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return hashlib.sha256(data).hexdigest()
