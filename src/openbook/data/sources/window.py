"""A block of a file, and the bytes of it as they lie on the disk."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

STANDARD_INPUT = Path("-")
ENDLESS = 1 << 62  # the size of what has none: standard input


class Damaged(Exception):
    """A file is cut or damaged, from the place on that was reached."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes `start` to `end` of a file on disk that had `size` bytes: it begins and ends between documents."""

    path: Path
    start: int
    end: int
    size: int

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.end == self.size


class Window(io.RawIOBase):
    """The bytes of a block as they lie on the disk."""

    def __init__(self, file: BinaryIO, block: Block) -> None:
        super().__init__()
        self.file, self.block, self.at = file, block, block.start
        if block.start:
            file.seek(block.start)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = self.block.end - self.at
        want = left if size < 0 else min(size, left)
        data = self.file.read(want) if want else b""
        if want and not data and self.block.size != ENDLESS:
            why = f"it became shorter while it was read: {self.block.end} bytes were there, now {self.at} are."
            raise Damaged("changed while read", why)
        self.at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
