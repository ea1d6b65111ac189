"""The interface of textstats.cpp: the statistics of a document. Its reference is data/clean/statistics.py; no torch."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

from openbook.native import build

FIELDS = 27  # whole numbers of textstats.cpp's `struct Counts`


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native statistics; None (said once) where they cannot be had."""
    return build.load("textstats", ("textstats.cpp",), [()]) if build.wanted() else None


def count(text: str, flags: bytes, stop_words: Sequence[str], short: int) -> tuple[int, ...] | None:
    """The fields of `struct Counts` in order, or None without the library."""
    native = library()
    if native is None:
        return None
    whole = ctypes.c_int64
    data = text.encode()
    words = [word.encode() for word in dict.fromkeys(stop_words)]
    sizes, found = (whole * len(words))(*map(len, words)), (whole * FIELDS)()
    asked = b"".join(words), sizes, whole(len(words)), whole(short)
    return None if native.openbook_textstats(data, whole(len(data)), flags, *asked, found) else tuple(found)
