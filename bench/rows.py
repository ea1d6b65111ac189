"""How near the row-exact products come to what the machine can do: bytes per second with few rows, else operations.

    python bench/rows.py [--threads 2] [--rounds 9]

The limits (reading the same matrices and doing nothing with them; multiplying with nothing to load) are measured in
every round beside the products, so that a share is of the same moment; what is printed is the median over the rounds.
For machines with AVX-512, VNNI and BF16.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from _harness import arguments
from openbook.native import build
from openbook.native.rows import WIDE
from openbook.nn.packed import Arena, Packed, RowLinear

KINDS = {"int8": (1, 64), "bf16": (2, 32), "fp32": (4, 16)}  # bytes of a weight, products of an instruction
SHAPES = ((1536, 576), (2048, 2048), (5632, 2048), (2048, 5632))
ROWS = (1, 4, 8, 32, 128, 512)
TOTAL = 96 << 20  # bytes of matrices that are read in turn, more than the caches hold


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Limits:
    """The machine's limits, measured anew at every call."""

    def __init__(self, threads: int) -> None:
        source = str(Path(__file__).resolve().parent / "limits.cpp")
        library = build.load("limits", (source,), [(*WIDE, "-mavx512bf16")])
        if library is None:
            raise SystemExit("The limits need a C++ compiler and AVX-512 with VNNI and BF16.")
        self.library, self.threads = library, threads
        library.openbook_limit_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        library.openbook_limit_multiply.argtypes = [ctypes.c_int64] * 3
        library.openbook_limit_read.restype = library.openbook_limit_multiply.restype = ctypes.c_double

    def read(self, memory: torch.Tensor) -> float:
        """Bytes per second."""
        return len(memory) / self.library.openbook_limit_read(memory.data_ptr(), len(memory), self.threads)

    def multiply(self, kind: str) -> float:
        """Operations per second, two for a product and its sum."""
        number, count = ("fp32", "bf16", "int8").index(kind), 200_000
        taken = self.library.openbook_limit_multiply(number, count, self.threads)
        return 2 * KINDS[kind][1] * 24 * count * self.threads / taken


def layers(kind: str, outs: int, ins: int) -> tuple[list[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]:
    """Linear maps that lie one behind the other, and the memory they lie in."""
    weight, size = torch.randn(outs, ins), outs * ins * KINDS[kind][0]
    count = TOTAL // size
    arena, made = Arena(), []
    arena.piece = memory = large(count * size)
    for _ in range(count):
        if kind == "fp32":
            made.append(RowLinear.of(torch.nn.Parameter(arena.take(weight)), None))
        else:
            layer = Packed.of(weight, kind)
            layer.tiles = arena.take(layer.tiles)
            made.append(layer)
    return made, memory


def large(size: int) -> torch.Tensor:
    """Memory in one piece, as an arena has it."""
    arena = Arena()
    return arena.take(torch.zeros(size + Arena.LINE, dtype=torch.uint8))


def main() -> None:
    given = arguments("Row-exact products beside the machine's limits.", threads=2, kinds="int8,bf16,fp32")
    torch.set_num_threads(given.threads)
    limits, found = Limits(given.threads), []
    print(f"{'':28}{'GB/s':>8}{'of limit':>10}{'GOP/s':>9}{'of limit':>10}")
    for kind in given.kinds.split(","):
        for outs, ins in SHAPES:
            made, memory = layers(kind, outs, ins)
            for rows in ROWS:
                x, rates = torch.randn(rows, ins), []
                some = made[: max(1, min(len(made), int(4e9 / (rows * outs * ins))))]  # with many rows some of them
                for _ in range(given.rounds + 1):
                    read, peak = limits.read(memory), limits.multiply(kind)
                    taken = seconds(lambda x=x, some=some: [layer(x) for layer in some]) / len(some)  # type: ignore[misc]
                    size, work = outs * ins * KINDS[kind][0] / taken, 2 * rows * outs * ins / taken
                    rates.append((size / 1e9, size / read, work / 1e9, work / peak))
                middle = [statistics.median(column) for column in zip(*rates[1:], strict=True)]
                found.append({"kind": kind, "out": outs, "in": ins, "rows": rows, "rates": middle})
                label = f"{kind} {outs} x {ins}, {rows} rows"
                print(f"{label:28}{middle[0]:8.1f}{middle[1]:10.0%}{middle[2]:9.0f}{middle[3]:10.0%}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "rows.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
