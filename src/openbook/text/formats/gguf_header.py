"""The header of a GGUF file: named values, of which those about the tokenizer are kept.

    "GGUF"  u32 version  u64 tensors  u64 values  then each value: key, u32 type, value
    a string is a u64 length and its bytes; an array a u32 type, a u64 count and its members

Counts and lengths are held against the size of the file before anything is read, so a file can claim nothing that it
does not hold. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from openbook.errors import TokenizerError
from openbook.files import explain_os_error
from openbook.text.formats.found import damaged

MAGIC = b"GGUF"
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 16  # values; published files have some dozens
_DEPTH = 4
_LISTED = 1 << 24  # members of a list that is read one by one


def read_header(path: Path, prefix: str) -> dict[str, Any]:
    """The values whose key begins with `prefix`. TokenizerError: damaged, or of another version."""
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).header(prefix)
    except OSError as error:
        raise TokenizerError(str(explain_os_error(error, path, "read"))) from error
    except (ValueError, struct.error) as error:
        raise damaged(path, f"it is no GGUF ({error})") from error


class _Reader:
    """A place in the data. ValueError: cut off."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0
        self.path = path

    def header(self, prefix: str) -> dict[str, Any]:
        magic, version, _, count = self._numbers("4sIQQ", 24)
        if magic != MAGIC or version not in (2, 3):
            raise TokenizerError(
                f"'{self.path}' is a GGUF of version {version}, which is not read here (2 and 3 are). Convert it anew."
            )
        if count > _MOST:
            raise ValueError(f"it claims {count} values")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            wanted = key.startswith(prefix)
            value = self._value(self._numbers("I", 4)[0], wanted)
            if wanted:
                found[key.removeprefix(prefix)] = value
        return found

    def _numbers(self, code: str, size: int) -> tuple[Any, ...]:
        start = self._step(size)
        return struct.unpack_from(f"<{code}", self.data, start)

    def _step(self, size: int) -> int:
        """Go on by `size` bytes; where they begin."""
        start = self.at
        if size > self.size - start:
            raise ValueError(f"it ends before {size} bytes that it claims at {start}")
        self.at = start + size
        return start

    def _string(self) -> str:
        (length,) = self._numbers("Q", 8)
        start = self._step(length)
        return self.data[start : self.at].decode("utf-8")

    def _value(self, kind: int, wanted: bool, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._numbers("IQ", 12)
            return self._array(inner, count, wanted, depth + 1)
        if kind not in _CODES:
            raise ValueError(f"there is no type {kind}")
        return self._numbers(_CODES[kind], struct.calcsize(_CODES[kind]))[0]

    def _array(self, kind: int, count: int, wanted: bool, depth: int) -> list[Any]:
        if kind in _CODES:
            size = struct.calcsize(_CODES[kind])
            start = self._step(count * size)
            if wanted and count > _LISTED:
                raise ValueError(f"it claims an array of {count}")
            return list(struct.unpack_from(f"<{count}{_CODES[kind]}", self.data, start)) if wanted else []
        if depth > _DEPTH or count > _LISTED or count * 8 > self.size - self.at:  # each takes eight at least
            raise ValueError(f"it claims an array of {count}")
        if wanted:
            return [self._value(kind, True, depth) for _ in range(count)]
        for _ in range(count):
            self._value(kind, False, depth)
        return []
