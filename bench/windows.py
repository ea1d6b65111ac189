"""What attention costs as rows grow: windows in blocks grow with T, full attention with its square.

    python bench/windows.py [--rounds 5] [--longest 32768] [--out runs/bench]

One row, 8 heads of 64, fp32, forward and backward with everything that is made for the row (blocks, masks); each point
in a process of its own. Milliseconds are the median of the rounds (fewer where one takes long), of the clock and of the
processor, which a loaded machine does not disturb; memory is the peak of the process above what it held before.
`growth` is the power of T from the shortest row to the longest: 1 linear, 2 quadratic.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from _harness import arguments, machine
from openbook import runtime
from openbook.nn import state as states
from openbook.nn.marks import mark
from openbook.nn.spec import Pattern
from openbook.nn.state import Dense, Scores

HEADS, SIZE = 8, 64
PATIENCE = 20.0  # seconds for all rounds of a point, but one round at least
KINDS: dict[str, dict[str, Any]] = {
    "window 256": {"pattern": Pattern(window=256)},
    "window 512": {"pattern": Pattern(window=512)},
    "both ways 257, 16 global": {"pattern": Pattern(causal=False, window=257, marked="global")},
    "full, causal": {"pattern": Pattern()},
    "window 512 as one mask": {"pattern": Pattern(window=512), "mask": True, "longest": 8192},
}


def held(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    text = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))


def measure(name: str, tokens: int, rounds: int) -> dict[str, float]:
    """One point, in this process."""
    kind = KINDS[name]
    pattern: Pattern = kind["pattern"]
    if kind.get("mask"):
        states.fits = lambda *_: False
    leaves = [torch.randn(1, tokens, HEADS, SIZE, requires_grad=True) for _ in range(3)]
    grad = torch.randn(1, tokens, HEADS, SIZE)
    positions = torch.arange(tokens).unsqueeze(0)
    scores = Scores(pattern=pattern, mask=0, scale=SIZE**-0.5)

    def once() -> tuple[float, float]:
        start = time.perf_counter(), time.process_time()
        marks = mark(positions % (tokens // 16) == 0, None) if pattern.marked else None
        state = Dense(positions, None, (pattern,), tokens, marks=marks)
        torch.autograd.grad(state.attend(0, *leaves, scores), leaves, grad)
        return 1e3 * (time.perf_counter() - start[0]), 1e3 * (time.process_time() - start[1])

    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    times = [once()]
    peak = held("VmHWM") - before
    while len(times) <= rounds and sum(clock for clock, _ in times) / 1e3 < PATIENCE:
        times.append(once())
    kept = times[1:] or times  # the first is for warming up
    clock, busy = (statistics.median(column) for column in zip(*kept, strict=True))
    return {"ms": clock, "processor ms": busy, "rounds": len(kept), "megabytes": peak / 2**20}


def growth(points: dict[str, dict[str, float]], what: str) -> float:
    """The power of T by which the shortest and the longest row differ."""
    (a, low), *_, (b, high) = points.items()
    return math.log(max(high[what], 1e-9) / max(low[what], 1e-9)) / math.log(int(b) / int(a))


def main() -> None:
    options = arguments("Attention in windows and in full, as rows grow.", rounds=5, longest=32768)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or runtime.default_threads())
    if options.child:
        name, tokens = options.child.split("@")
        print(json.dumps(measure(name, int(tokens), options.rounds)))
        return
    cases: dict[str, Any] = {}
    for name, kind in KINDS.items():
        points: dict[str, dict[str, float]] = {}
        tokens, longest = 1024, min(options.longest, kind.get("longest", options.longest))
        while tokens <= longest:
            command = [sys.executable, __file__, "--child", f"{name}@{tokens}", "--rounds", str(options.rounds)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            points[str(tokens)] = {**json.loads(said), "load": os.getloadavg()[0]}
            tokens *= 2
        cases[name] = {
            "points": points,
            "growth": {what: round(growth(points, what), 2) for what in ("processor ms", "megabytes")},
        }
        cells = "  ".join(f"{t}: {p['processor ms']:.0f} ms {p['megabytes']:.0f} MB" for t, p in points.items())
        print(f"{name:<26} {cells}   T^{cases[name]['growth']['processor ms']}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {"title": "windows as rows grow", "unit": "ms forward and backward", "machine": machine(), "cases": cases}
    (options.out / "windows.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
