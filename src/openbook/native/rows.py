"""The interface of rows.cpp: its structures and the loaded library. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools
import sys

from openbook import log
from openbook.hardware import cpu_features
from openbook.native import build

SOURCES = ("rows.cpp", "served.h", "agree.h", "pack.h", "product.h", "gemm.h", "lanes.h", "amx.h")
EXACT = ("-ffp-contract=off", "-fwrapv")  # rounded where PyTorch rounds; whole numbers may pass over the end and back
WIDE = tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni"))
AMX = ("-DOPENBOOK_AMX", "-mamx-tile", "-mamx-bf16", "-mamx-int8")
KINDS = {"fp32": 0, "bf16": 1, "int8": 2}
FUNCTIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu", "tanh", "sigmoid", "softplus", "exp")


class Matrix(ctypes.Structure):
    """rows.cpp's `struct Matrix`; null addresses are none."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "scale", "smooth", "bias")),
        *((name, ctypes.c_int64) for name in ("kind", "inputs", "outputs")),
    )


class Norm(ctypes.Structure):
    """kind 0: rms, 1: layer, -1: none."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("kind", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("offset", ctypes.c_float),
    )


class Branch(ctypes.Structure):
    """served.h's `struct Branch`."""

    _fields_ = (*((name, Norm) for name in ("pre", "post", "last")), ("factor", ctypes.c_float))


class Block(ctypes.Structure):
    """served.h's `struct Block`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("dim", "heads", "kv_heads", "head_dim", "hidden", "activation", "parallel")),
        *((name, ctypes.c_int64) for name in ("neighbours", "over")),
        *((name, Branch) for name in ("attention", "ffn")),
        *((name, Norm) for name in ("shared", "head_q", "head_k")),
        *((name, Matrix) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        ("clip", ctypes.c_float),
    )


class Step(ctypes.Structure):
    """served.h's `struct Step`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "turned")),
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "q", "k", "v", "mixed", "y")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The row operators; None (said once) where they cannot be had."""
    if not build.wanted():
        return None
    features = cpu_features()
    tiles = sys.platform == "linux" and {"AMX int8", "AMX bf16", "AVX-512 BF16"} <= set(features)
    choices: list[tuple[str, ...]] = []
    if "AVX-512 VNNI" in features:
        choices = [(*EXACT, *WIDE, "-mavx512bf16", *AMX)] if tiles else []
        choices += [(*EXACT, *WIDE, "-mavx512bf16")] if "AVX-512 BF16" in features else []
        choices += [(*EXACT, *WIDE)]
    if "AVX-VNNI" in features:
        choices += [(*EXACT, "-mavx2", "-mfma", "-mavxvnni")]
    choices += [(*EXACT, "-mavx2", "-mfma")] if "AVX2" in features else [EXACT]
    found = build.load("rows", SOURCES, choices)
    if found is None:
        return None
    if tiles and build.tried(found, "openbook_rows_trial"):
        found.openbook_rows_machine(2)
    elif tiles:
        log.note("AMX is not used by the row operators: a trial of it failed. AVX-512 is.", once="native rows amx")
    return declared(found)


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    word, address = ctypes.c_int64, ctypes.c_void_p
    found.openbook_rows_machine.argtypes = [word]
    found.openbook_rows_machine.restype = word
    found.openbook_rows_product.argtypes = [address, word, address, address, word]
    found.openbook_rows_grouped.argtypes = [address, address, word, word, address, address, word]
    found.openbook_rows_normalise.argtypes = [address, word, word, address, address, word]
    found.openbook_rows_activate.argtypes = [word, word, address, address, word]
    found.openbook_rows_large_pages.argtypes = [address, word]
    found.openbook_rows_large_pages.restype = None
    for function in (found.openbook_rows_before, found.openbook_rows_after):
        function.argtypes = [address, address, word]
        function.restype = ctypes.c_int
    found.openbook_rows_pack.argtypes = [address, word, address, address, address, word]
    found.openbook_rows_pack.restype = ctypes.c_int
    for function in (found.openbook_rows_product, found.openbook_rows_grouped):
        function.restype = ctypes.c_int
    for function in (found.openbook_rows_normalise, found.openbook_rows_activate):
        function.restype = None
    return found


def check(status: int) -> None:
    """Raise for what an operator answers."""
    if status:
        raise MemoryError("no memory for the working space of a native operator")
