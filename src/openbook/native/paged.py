"""The interface of paged.cpp: its structure and the loaded library. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Sequence

from openbook.hardware import cpu_features
from openbook.native import build
from openbook.native.attention import AMX, AVX512

SOURCES = ("paged.cpp", "paged_walk.h", "paged_products.h", "paged_pages.h", "vector.h", "tiles.h", "amx.h")
AVX2 = ("-mavx2", "-mfma")
WIDE = (*AVX2, "-mavx512f")  # AVX-512 before it had bf16
ALWAYS = ("-ffp-contract=off",)
EMULATED = (*AVX512, "-DOPENBOOK_AMX", "-DOPENBOOK_EMULATE_AMX")  # for tests
FLOAT, BF16, INT8 = 0, 1, 2  # kinds of numbers
WRITE, ATTEND = 1, 2  # what to do


_WORD, _ADDRESS, _NUMBER = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class Problem(ctypes.Structure):
    """What paged.cpp works on; its `struct Problem` field by field."""

    _fields_ = (
        ("pages", _ADDRESS),
        *((name, _WORD) for name in ("count", "kind", "page", "kv_heads", "key_dim", "value_dim", "latent")),
        *((name, _ADDRESS) for name in ("table", "starts", "lengths", "slots")),
        *((name, _WORD) for name in ("sequences", "width")),
        *((name, _WORD) for name in ("tokens", "heads", "input", "threads", "unit")),
        *(
            (name + part, kind)
            for name in ("q", "k", "v", "out")  # [T, heads, dim], the last dimension dense; strides in numbers
            for part, kind in (("", _ADDRESS), ("_token", _WORD), ("_head", _WORD))
        ),
        *((name, _WORD) for name in ("causal", "window", "chunk")),
        *((name, _NUMBER) for name in ("scale", "softcap")),
        ("bias", _ADDRESS),
        ("bias_length", _WORD),
        ("sinks", _ADDRESS),
    )


class Paged:
    """The loaded operator. `unit` is what multiplies bf16: 2 AMX, 1 AVX-512 BF16, 0 fp32 vectors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.function = library.openbook_paged
        self.function.argtypes = [ctypes.POINTER(Problem), ctypes.c_int]
        self.function.restype = ctypes.c_int
        self.unit: int = library.openbook_paged_unit()

    def run(self, problem: Problem, what: int) -> None:
        """Write new tokens to pages (`WRITE`), attend (`ATTEND`), or both."""
        failure = self.function(ctypes.byref(problem), what)
        assert failure != 2, "the tables of a walk stay within the step and its pages"
        if failure:
            raise MemoryError("no memory for the working space of paged attention")


def load(choices: Sequence[Sequence[str]]) -> Paged | None:
    """The operator compiled with the first flags of `choices` that the compiler knows."""
    library = build.load("paged", SOURCES, [(*ALWAYS, *flags) for flags in choices])
    return None if library is None else Paged(library)


@functools.cache
def paged() -> Paged | None:
    """The operator for this machine, compiled if need be; None (said once) where it cannot be had."""
    if not build.wanted():
        return None
    features = cpu_features() if platform.machine() == "x86_64" else ()
    choices: list[Sequence[str]] = []
    if "AVX-512 BF16" in features:
        choices = [(*AVX512, *AMX), AVX512] if "AMX bf16" in features else [AVX512]
    if "AVX-512" in features:
        choices.append(WIDE)
    return load([*choices, AVX2 if "AVX2" in features else ()])
