"""The interface of scan.cpp: its structures and the loaded library. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools

from openbook.hardware import cpu_features
from openbook.native import build
from openbook.native.rows import EXACT

SOURCES = ("scan.cpp", "lanes.h")
WIDE = tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq"))


class Scan(ctypes.Structure):
    """scan.cpp's `struct Scan`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("rows", "tokens", "channels", "states", "groups", "decays", "chunk")),
        *((n, ctypes.c_void_p) for n in ("x", "step", "write", "read", "decay", "skip", "mark")),
        *((n, ctypes.c_void_p) for n in ("kept", "y", "borders")),
    )


class Back(ctypes.Structure):
    """scan.cpp's `struct Back`."""

    _fields_ = tuple(
        (n, ctypes.c_void_p) for n in ("dy", "carry", "to_x", "to_step", "to_write", "to_read", "to_decay", "to_skip")
    )


class Delta(ctypes.Structure):
    """scan.cpp's `struct Delta`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("rows", "tokens", "heads", "groups", "key", "value")),
        *((n, ctypes.c_void_p) for n in ("q", "k", "v", "decay", "rate", "mark", "kept", "y")),
    )


class Turn(ctypes.Structure):
    """scan.cpp's `struct Turn`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("rows", "tokens", "channels", "states")),
        *((n, ctypes.c_void_p) for n in ("x", "turn", "write", "read", "skip", "kept", "y")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The scans; None (said once) where they cannot be had."""
    if not build.wanted():
        return None
    features = cpu_features()
    choices = [(*EXACT, *WIDE)] if "AVX-512 VNNI" in features else []
    choices += [(*EXACT, "-mavx2", "-mfma")] if "AVX2" in features else [EXACT]
    found = build.load("scan", SOURCES, choices)
    return None if found is None else declared(found)


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    word, address = ctypes.c_int64, ctypes.c_void_p
    found.openbook_scan_backward.argtypes = [address, address, word]
    found.openbook_scan_backward.restype = ctypes.c_int
    for function in (
        found.openbook_scan_forward,
        found.openbook_scan_threads,
        found.openbook_scan_delta,
        found.openbook_scan_turn,
    ):
        function.argtypes = [address, word]
        function.restype = ctypes.c_int
    return found
