"""The interface of minhash.cpp: the loaded library and the types of its functions. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools

from openbook.hardware import cpu_features
from openbook.native import build

SOURCES = ("minhash.cpp",)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The operators on texts; None (said once) where they cannot be had."""
    if not build.wanted():
        return None
    features = cpu_features()
    choices: list[tuple[str, ...]] = [("-fwrapv",)]
    if "AVX2" in features:
        choices.insert(0, ("-fwrapv", "-mavx2"))
    if "AVX-512 VNNI" in features:
        choices.insert(0, ("-fwrapv", *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq"))))
    found = build.load("minhash", SOURCES, choices)
    return None if found is None else declared(found)


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions: `a` an address, `n` a whole number."""
    functions = {
        "units": ("anannaaa", ctypes.c_int64),
        "ngrams": ("anna", None),
        "signatures": ("aanannnaana", ctypes.c_int),
        "sketch": ("aanaana", ctypes.c_int),
        "bands": ("annnnann", None),
        "join": ("aanannna", None),
        "unite": ("aaan", None),
        "search": ("ananaananan", ctypes.c_int64),
    }
    types = {"a": ctypes.c_void_p, "n": ctypes.c_int64}
    for name, (arguments, answer) in functions.items():
        function = getattr(found, f"openbook_minhash_{name}")
        function.argtypes = [types[letter] for letter in arguments]
        function.restype = answer
    return found
