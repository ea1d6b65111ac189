"""The interface of block.cpp: its structures and the loaded library. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools

from openbook.hardware import cpu_features
from openbook.native import build

MOST = 4  # rows of one call
_POINTERS = {"weight": ctypes.c_void_p, "bias": ctypes.c_void_p}


class Norm(ctypes.Structure):
    """kind 0: rms, 1: layer, -1: none."""

    _fields_ = (*_POINTERS.items(), ("kind", ctypes.c_int64), ("eps", ctypes.c_float), ("offset", ctypes.c_float))


class Linear(ctypes.Structure):
    """weight [out,in]; a null bias is none."""

    _fields_ = tuple(_POINTERS.items())


class Block(ctypes.Structure):
    """A pre-norm block of self-attention and a feed-forward layer; block.cpp's `struct Block` field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("type", "dim", "heads", "kv_heads", "head_dim", "hidden", "activation")),
        *((name, Norm) for name in ("before", "head_q", "head_k", "after")),
        *((name, Linear) for name in ("q", "k", "v", "out", "gate", "up", "down")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """`openbook_before`, `openbook_after` and `openbook_linear`; None (said once) where they cannot be had."""
    if not build.wanted():
        return None
    features = cpu_features()
    wide = tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16"))
    choices = [wide] if "AVX-512 BF16" in features else []
    choices += [("-mavx2", "-mfma")] if "AVX2" in features else [()]
    found = build.load("block", ("block.cpp",), choices)
    if found is not None:
        word, address = ctypes.c_int64, ctypes.c_void_p
        found.openbook_before.argtypes = [address, word, *[address] * 3, word, *[address] * 3, word]
        found.openbook_after.argtypes = [address, word, *[address] * 3, word]
        found.openbook_linear.argtypes = [word, address, address, word, word, word, address, address, word]
        for function in (found.openbook_before, found.openbook_after, found.openbook_linear):
            function.restype = None
    return found
