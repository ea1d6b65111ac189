"""What a longer row costs: attention grows with its square, a scan in step with it.

Question: time and memory of one layer as the row grows. Method: one attention layer that writes its scores down (the
definition), one with the fused operator, one selective state space, each forward and backward at doubling lengths; a
process of its own measures the memory of each. Expected: from one length to twice that, the definition of attention
takes about four times the time and memory, the fused operator four times the time (its memory stays in step), the scan
two times each (Gu & Dao 2023 §3.3). Time is that of the processor, on one thread, the least of the repeats: what else
the machine does is not counted.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments.lab import ROOT, Results, attention, lines
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.attend import mix_reference

DIM = 64
KINDS = ("attention, scores written down", "attention, fused", "selective scan")


def one(kind: str, length: int, repeats: int) -> tuple[float, float]:
    """Least seconds of a forward and backward pass, and MiB of memory beyond what the process had before."""
    torch.manual_seed(0)
    x = torch.randn(1, length, DIM, requires_grad=True)
    if kind == KINDS[2]:
        mixer: spec.Layer = spec.Selective(inner=DIM, state=16, rank=4)
    else:
        mixer = attention(DIM, heads=2)
    block = spec.Block(branches=(spec.Branch(layer=mixer, norm=spec.Norm()),))
    model = make(spec.Model(embed=spec.Embed(vocab=2, dim=DIM), stack=spec.Stack(dim=DIM, blocks=(block,)), heads=()))
    ids, times = torch.zeros(1, length, dtype=torch.int64), []
    before = peak(reset=True)
    for _ in range(repeats):
        began = time.process_time()
        if kind == KINDS[0]:
            q, k, v = (x.view(1, length, 2, DIM // 2) for _ in range(3))
            out = mix_reference(q, k, v, None, True, (DIM // 2) ** -0.5)
        else:
            out = model.hidden(ids)
        out.square().sum().backward()
        times.append(time.process_time() - began)
    return min(times), max(peak() - before, 0.1)


def peak(reset: bool = False) -> float:
    """The most memory this process has held since the last reset, in MiB (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run(quick: bool, seed: int) -> Results:  # noqa: ARG001
    """Seconds and MiB for each kind and length; each kind in a process of its own."""
    lengths = (1024, 2048, 4096) if quick else (1024, 2048, 4096, 8192)
    found: Results = {"lengths": lengths, "seconds": {}, "memory": {}}
    for kind in KINDS:
        words = [kind, "3" if quick else "5", *map(str, lengths)]
        command = [sys.executable, "-m", "experiments.length_cost", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        pairs = json.loads(done.stdout)
        found["seconds"][kind] = [seconds for seconds, _ in pairs]
        found["memory"][kind] = [memory for _, memory in pairs]
    return found


def slope(x: Any, y: Any) -> float:
    """The exponent by which y grows with x, over the last doublings."""
    return math.log(y[-1] / y[-3]) / math.log(x[-1] / x[-3])


def claims(results: Results) -> dict[str, bool]:
    """Exponents of growth."""
    time_of = {kind: slope(results["lengths"], results["seconds"][kind]) for kind in KINDS}
    written, _, scan = (results["memory"][kind][-1] for kind in KINDS)
    longest = results["lengths"][-1]
    return {
        f"written down: time ∝ T^{time_of[KINDS[0]]:.1f}": time_of[KINDS[0]] > 1.5,
        f"scan: time ∝ T^{time_of[KINDS[2]]:.1f}": time_of[KINDS[2]] < 1.5,
        f"at {longest:,} tokens the scores take {written / scan:.0f} times the scan's memory": written > 4 * scan,
    }


def draw(results: Results, figure: Any) -> None:
    """Time and memory over the length, both logarithmic."""
    left, right = figure.subplots(1, 2)
    for axes, key, label in ((left, "seconds", "processor seconds, forward and backward"), (right, "memory", "MiB")):
        lines(axes, {kind: (results["lengths"], results[key][kind]) for kind in KINDS}, xlabel="tokens", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    figure.suptitle("One layer, width 64: what a longer row costs")


if __name__ == "__main__":
    torch.set_num_threads(1)
    which, count, *sizes = sys.argv[1:]
    one(which, 64, 1)  # what is loaded at first use is no cost of a length
    print(json.dumps([one(which, int(size), int(count)) for size in sizes]))
