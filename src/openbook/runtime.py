"""What follows from the machine: threads, whether models compile, device, dtype, and the measured limits of speed.

Nothing here imports torch before it is asked something only torch can answer. The two limits that speed is measured
against, memory bandwidth and the matrix peak, are measured once per machine and kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openbook.errors import ConfigError, OpenbookError, nearest
from openbook.files import write_atomic
from openbook.hardware import (
    BF16_FEATURES,
    INT8_FEATURES,
    affinity,
    cpu_features,
    find_compiler,
    memory,
    physical_cores,
    processor_name,
    usable_cores,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Measured limits with `threads` threads: GB/s read from memory; GFLOP/s of a large matrix product, by type."""

    threads: int
    read: float
    float32: float
    bfloat16: float
    int8: float | None


# ------------------------------------------------------------------------------------------------ threads


def default_threads() -> int:
    """Threads for computing: OMP_NUM_THREADS if set, else the physical cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, min(physical_cores(affinity()), int(usable_cores())))


def use_threads(count: int | None = None) -> int:
    """Make torch compute with `count` threads (default: `default_threads()`); returns the number."""
    import torch

    threads = default_threads() if count is None else count
    if threads < 1:
        raise ConfigError(f"`threads` must be at least 1: got {threads}.")
    torch.set_num_threads(threads)
    return threads


@functools.cache
def keep_memory() -> bool:
    """Let this process keep the memory it frees, so that large tensors do not fault their pages in at every step.

    glibc gives every block beyond 32 MB back to the system and asks for it again: in a training step on the CPU that
    costs a fifth to a third of the time (docs/lab.md). Returns whether there was anything to set (Linux with glibc).
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # glibc's names for these numbers: M_TRIM_THRESHOLD and so on
    return all([mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 64 << 20)])


# ------------------------------------------------------------------------------------------------ compiler


def compile_obstacle() -> str | None:
    """Why `torch.compile` cannot work here and what to do about it, in one sentence; None if it can.

    It needs a C++ compiler that runs, and Python's headers.
    """
    return find_compiler()[1]


# ------------------------------------------------------------------------------------------------ device and dtype


def pick_device(name: str = "auto") -> torch.device:
    """The device for a name: `auto` (a CUDA GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`. Errors: ConfigError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise ConfigError(f"Unknown device '{name}'.{nearest(name, ['auto', 'cpu', 'cuda', 'cuda:0', 'mps'])}")
    if kind == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if not torch.backends.cuda.is_built() else "no CUDA GPU is visible"
        raise ConfigError(f"Device '{name}' is not here: {why} (torch {torch.__version__}). Use 'cpu' or 'auto'.")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device '{name}' is not here: there are {torch.cuda.device_count()} GPUs, counted from cuda:0."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"Device '{name}' is not here: it needs macOS on Apple silicon. Use 'cpu' or 'auto'.")
    return torch.device(name)


def pick_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The number type for a name; `auto` is bfloat16 where the device multiplies it natively, else float32.

    float16 is only ever chosen by name: its range is too small for some models. Errors: ConfigError.
    """
    import torch

    types = {
        "float32": torch.float32,
        "fp32": torch.float32,
        "bfloat16": torch.bfloat16,
        "bf16": torch.bfloat16,
        "float16": torch.float16,
        "fp16": torch.float16,
    }
    if name in types:
        return types[name]
    if name != "auto":
        raise ConfigError(f"Unknown dtype '{name}'.{nearest(name, ['auto', *types])}")
    if device is not None and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = (device is None or device.type == "cpu") and not BF16_FEATURES.isdisjoint(cpu_features())
    return torch.bfloat16 if native else torch.float32


# ------------------------------------------------------------------------------------------------ measured limits


def cache_folder() -> Path:
    """Where things that can be made again are kept: OPENBOOK_CACHE, else the system's cache folder for this user."""
    if own := os.environ.get("OPENBOOK_CACHE"):
        return Path(own)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "openbook"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openbook"


def peaks(threads: int | None = None, *, again: bool = False) -> Peaks:
    """The measured limits of this machine with `threads` threads; from the cache, or measured now (2–5 s).

    A limit is the best that was ever seen: with `again`, what a busy moment lowered can only rise.
    """
    import torch

    count = threads or default_threads()
    identity = [processor_name(), platform.machine(), os.cpu_count(), usable_cores(), torch.__version__, count]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    file = cache_folder() / f"peaks-{key}.json"
    kept: Peaks | None = None
    with contextlib.suppress(OSError, ValueError, TypeError):  # absent, damaged, of another version: measure anew
        kept = Peaks(**json.loads(file.read_text(encoding="utf-8")))
    if kept is not None and not again:
        return kept
    measured = _higher(_measure(count), kept)
    with contextlib.suppress(OpenbookError):  # a cache that cannot be written only costs the next run a measurement
        write_atomic(file, json.dumps(asdict(measured), indent=2) + "\n")
    return measured


def _higher(one: Peaks, other: Peaks | None) -> Peaks:
    if other is None:
        return one
    int8 = max((v for v in (one.int8, other.int8) if v is not None), default=None)
    return Peaks(
        threads=one.threads,
        read=max(one.read, other.read),
        float32=max(one.float32, other.float32),
        bfloat16=max(one.bfloat16, other.bfloat16),
        int8=int8,
    )


def _measure(threads: int) -> Peaks:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = min(512 << 20, max(64 << 20, memory()[1] // 8))
        seconds = _best(functools.partial(torch.sum, torch.ones(size // 4)))
        return Peaks(
            threads=threads,
            read=round(size / seconds / 1e9, 2),
            float32=_matmul_peak(torch.float32),
            bfloat16=_matmul_peak(torch.bfloat16),
            int8=_matmul_peak(torch.int8) if not INT8_FEATURES.isdisjoint(cpu_features()) else None,
        )
    finally:
        torch.set_num_threads(before)


def _matmul_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of square products, a small one first: without hardware for the type a large one takes seconds."""
    import torch

    rate = 0.0
    for size in (256, 1024, 2048):
        if rate and 2 * size**3 / rate > 0.3:
            break
        a, b = torch.ones(size, size).to(dtype), torch.ones(size, size).to(dtype)
        product: Callable[[], object] = (
            functools.partial(torch._int_mm, a, b) if dtype == torch.int8 else functools.partial(torch.mm, a, b)
        )
        rate = max(rate, 2 * size**3 / _best(product))
    return round(rate / 1e9, 1)


def _best(work: Callable[[], object], budget: float = 0.4) -> float:
    """Seconds of the fastest of several runs within about `budget` seconds, after one to warm up."""
    work()
    best, spent = float("inf"), 0.0
    while spent < budget:
        start = time.perf_counter()
        work()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
    return best
