"""The interface of attention.cpp: its two structures and the loaded library. Addresses and numbers; no torch."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

from openbook import log
from openbook.hardware import cpu_features
from openbook.native import build

SOURCES = ("attention.cpp", "forward.h", "backward.h", "problem.h", "visible.h", "tiles.h", "amx.h")
AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16"))
AMX = ("-DOPENBOOK_AMX", "-mamx-tile", "-mamx-bf16")


class Strided(ctypes.Structure):
    """bf16 numbers [B, tokens, heads, dim] at `data`, the last dimension dense; strides in numbers."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "token", "head"))]


class Problem(ctypes.Structure):
    """What attention.cpp works on; its `struct Problem` field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "queries", "keys", "heads", "kv_heads", "key_dim", "value_dim")),
        *((name, ctypes.c_int64) for name in ("causal", "window", "threads", "unit")),
        ("scale", ctypes.c_double),
        ("segments", ctypes.c_void_p),
        ("segments_stride", ctypes.c_int64),
        *((name, Strided) for name in ("q", "k", "v", "out")),
        ("lse", ctypes.c_void_p),
        *((name, Strided) for name in ("grad", "dq", "dk", "dv")),
    ]


class Attention:
    """The loaded operator. `unit` is what multiplies: 2 AMX, 1 AVX-512 BF16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.unit: int = library.openbook_attention_unit()
        for function in (library.openbook_attention_forward, library.openbook_attention_backward):
            function.argtypes = [ctypes.POINTER(Problem)]
            function.restype = ctypes.c_int

    def forward(self, problem: Problem) -> None:
        """From q, k and v write `out` and `lse`."""
        self._run(self.library.openbook_attention_forward, problem)

    def backward(self, problem: Problem) -> None:
        """From q, k, v, `out`, `lse` and `grad` write dq, dk and dv."""
        self._run(self.library.openbook_attention_backward, problem)

    def _run(self, function: ctypes._NamedFuncPointer, problem: Problem) -> None:
        problem.unit = self.unit
        if function(ctypes.byref(problem)):
            raise MemoryError("no memory for the working space of attention")


@functools.cache
def attention() -> Attention | None:
    """The operator, compiled if need be; None (said once) where there is none."""
    if not build.wanted():
        return None
    features = cpu_features()
    if sys.platform != "linux" or platform.machine() != "x86_64" or "AVX-512 BF16" not in features:
        log.note("Native attention needs AVX-512 BF16 or AMX, on Linux: PyTorch's is used.", once="native attention")
        return None
    library = build.load("attention", SOURCES, [(*AVX512, *AMX), AVX512] if "AMX bf16" in features else [AVX512])
    return None if library is None else Attention(library)
