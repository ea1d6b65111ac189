"""The interface of grams.cpp: the chances of bytes under a model of n-grams. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

from openbook.native import build


class Table(ctypes.Structure):
    """grams.cpp's `struct Table`."""

    _fields_ = (("slots", ctypes.c_void_p), ("bits", ctypes.c_int64))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native operator; None (said once) where it cannot be had."""
    return build.load("grams", ("grams.cpp",), [()]) if build.wanted() else None


def chances(data: bytes, tables: Sequence[tuple[int, int]], unseen: float, out: int) -> bool:
    """Write the logs to the address `out`. `tables`: addresses of slots, and bits. False without the library."""
    native = library()
    if native is None:
        return False
    whole = ctypes.c_int64
    given = (Table * len(tables))(*(Table(*table) for table in tables))
    order = whole(len(tables))
    native.openbook_grams(data, whole(len(data)), given, order, ctypes.c_float(unseen), ctypes.c_void_p(out))
    return True
