"""Paged attention alone: the native operator beside its PyTorch definition and beside gathering for PyTorch's own.

    python bench/paged_attention.py [--rounds 20] [--out runs/bench]

A call is what a layer of the engine asks for: write the new tokens, then mix. The pages of several layers are walked in
turn, so that they come from memory and not from the caches, as in a model. Times are milliseconds for a layer, the
least and the median of all rounds, contenders in turn. "GB/s" is what was read of the pages, beside what this machine
reads.
Gathering is given its best: all heads of a token in one row, the heads that share keys as the rows of one, no mask.

The second part is the memory that prefilling one sequence of 9 heads takes beyond its pages and queries, its result
included: the peak of a process of its own, by length. A matrix of scores would take 4 · heads · length² bytes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from _harness import arguments, machine
from openbook import runtime
from openbook.native.paged import paged
from openbook.nn import paged_reference
from openbook.nn.paged import Layout, Pages, Rule, Walk, write, write_and_attend

CASES: dict[str, dict[str, Any]] = {  # requests, tokens of each, new tokens of each; heads, kv_heads, dim
    "decode 15m": {"step": (32, 256, 1), "heads": (6, 6, 48)},
    "decode 135m": {"step": (32, 256, 1), "heads": (9, 3, 64)},
    "decode 1.1b": {"step": (32, 256, 1), "heads": (32, 4, 64)},
    "decode 135m, int8": {"step": (32, 256, 1), "heads": (9, 3, 64), "dtype": torch.int8},
    "decode 135m, fp32": {"step": (32, 256, 1), "heads": (9, 3, 64), "dtype": torch.float32},
    "decode 135m, one of 8192": {"step": (1, 8192, 1), "heads": (9, 3, 64)},
    "prefill 15m": {"step": (1, 512, 512), "heads": (6, 6, 48), "layers": 2},
    "prefill 135m": {"step": (1, 512, 512), "heads": (9, 3, 64), "layers": 2},
    "prefill 1.1b": {"step": (1, 512, 512), "heads": (32, 4, 64), "layers": 2},
}
LENGTHS = (2048, 4096, 8192, 16384)
Layer = tuple[Pages, Walk]
Mixer = Callable[[Pages, Walk, Tensor, Tensor, Tensor], Tensor]


def layers(case: dict[str, Any], dtype: torch.dtype) -> tuple[list[Layer], list[Tensor]]:
    """The pages of some layers, filled, and q, k, v of a step."""
    (requests, length, new), (heads, kv_heads, dim) = case["step"], case["heads"]
    layout = Layout(kv_heads=kv_heads, key_dim=dim, value_dim=dim, dtype=dtype)
    each = -(-length // layout.page)
    made = []
    for _ in range(case.get("layers", 10)):
        pages = Pages(layout, requests * each + 1)
        table = (torch.randperm(requests * each) + 1).int().view(requests, each)
        place = torch.arange(length)
        slots = (table[:, place // layout.page] * layout.page + place % layout.page).int()
        kv = torch.randn(requests * length, kv_heads, dim)
        write(pages, kv, kv, slots.flatten())
        starts = (torch.arange(requests + 1) * new).int()
        lengths = torch.full((requests,), length, dtype=torch.int32)
        last = slots[:, length - new :].flatten().contiguous()
        made.append((pages, Walk(table=table, starts=starts, lengths=lengths, slots=last)))
    kind = torch.float32 if dtype == torch.float32 else torch.bfloat16
    return made, [torch.randn(requests * new, count, dim).to(kind) for count in (heads, kv_heads, kv_heads)]


def contenders(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Mixer]:
    """Who takes part. The definition is there as what a machine without a compiler gets."""
    (requests, length, new), (_, kv_heads, dim) = case["step"], case["heads"]
    scale = dim**-0.5
    rule = Rule(True, None, scale, None, None, None)
    stored = dtype if dtype != torch.int8 else torch.bfloat16
    rows = [torch.randn(requests * length, kv_heads * dim).to(stored) for _ in "kv"]
    index = torch.randperm(requests * length)
    last = index.view(requests, length)[:, length - new :].flatten()

    def ours(pages: Pages, walk: Walk, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return write_and_attend(pages, walk, q, k, v, causal=True, window=None, scale=scale)

    def definition(pages: Pages, walk: Walk, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        paged_reference.write(pages, k, v, walk.slots)
        return paged_reference.attend(pages, walk, q, rule)

    def gather(_: Pages, __: Walk, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sides = []
        for side, x in zip(rows, (k, v), strict=True):
            side[last] = x.flatten(1)
            sides.append(side.index_select(0, index).view(requests, length, kv_heads, dim).transpose(1, 2))
        if new == 1:  # the heads that share keys are the rows of one head
            wide = q.view(requests, kv_heads, -1, dim)
            return scaled_dot_product_attention(wide, *sides, scale=scale)
        wide = q.view(requests, new, -1, dim).transpose(1, 2)
        return scaled_dot_product_attention(wide, *sides, is_causal=True, scale=scale, enable_gqa=True)

    found = {"ours": ours, "definition": definition}
    return found if dtype == torch.int8 else {**found, "gather + sdpa": gather}


def measure(case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Milliseconds for a layer, least and median."""
    dtype = case.get("dtype", torch.bfloat16)
    made, (q, k, v) = layers(case, dtype)
    times: dict[str, list[float]] = {}
    both = contenders(case, dtype)
    for turn in range(rounds + 1):
        for name, mixer in both.items():
            if name == "definition" and turn > 2:
                continue
            some = made[:1] if name == "definition" else made
            start = time.perf_counter()
            for pages, walk in some:
                mixer(pages, walk, q, k, v)
            if turn:
                times.setdefault(name, []).append(1e3 * (time.perf_counter() - start) / len(some))
    found: dict[str, Any] = {
        name: {"least": round(min(t), 4), "median": round(statistics.median(t), 4)} for name, t in times.items()
    }
    requests, length, _ = case["step"]
    layout = made[0][0].layout
    read = requests * -(-length // layout.page) * layout.nbytes
    found["GB/s"] = round(read / found["ours"]["least"] / 1e6, 1)
    return found


def machine_reads() -> float:
    """GB/s of a plain sum."""
    numbers, least = torch.ones(25_000_000, dtype=torch.int64), 1e9
    for _ in range(6):
        start = time.perf_counter()
        numbers.sum()
        least = min(least, time.perf_counter() - start)
    return round(numbers.nbytes / least / 1e9, 1)


def status(name: str) -> int:
    """A size of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"This system does not say {name}.")


def peak(length: int, way: str) -> int:
    """Bytes that one prefill of `length` tokens takes at most, beyond what was there."""
    case = {"step": (1, length, length), "heads": (9, 3, 64), "layers": 1}
    [(pages, walk)], (q, k, v) = layers(case, torch.bfloat16)
    warm = layers({**case, "step": (1, 64, 64)}, torch.bfloat16)
    mixer = contenders({**case, "step": (1, 64, 64)}, torch.bfloat16)[way]
    mixer(*warm[0][0], *warm[1])
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = status("VmRSS")
    out = mixer(pages, walk, q, k, v)
    assert len(out) == length
    return status("VmHWM") - before


def main() -> None:
    options = arguments("Paged attention: ours, its definition, and gathered pages through PyTorch.")
    torch.set_num_threads(runtime.default_threads())
    if options.child:
        way, length = options.child.split(":")
        print(peak(int(length), way))
        return
    operator = paged()
    if operator is None:
        raise SystemExit("There is no native paged attention on this machine.")
    unit = {2: "AMX", 1: "AVX-512 BF16", 0: "fp32 vectors"}[operator.unit]
    reads = machine_reads()
    print(f"Paged attention, {unit}, {torch.get_num_threads()} threads, machine reads {reads} GB/s: ms least (median)")
    cases: dict[str, Any] = {}
    for name, case in CASES.items():
        found = cases[name] = measure(case, options.rounds)
        cells = [f"{who} {t['least']:.3f} ({t['median']:.3f})" for who, t in found.items() if who != "GB/s"]
        others = [t["least"] for who, t in found.items() if who not in ("ours", "GB/s")]
        found["times faster than the best other"] = ratio = round(min(others) / found["ours"]["least"], 2)
        print(f"  {name:<25} {'   '.join(cells)}   {ratio}×, {found['GB/s']} GB/s", flush=True)
    memory: dict[str, Any] = {}
    for way in ("ours", "definition") if Path("/proc/self/clear_refs").exists() else ():
        command = [sys.executable, sys.argv[0], "--child"]
        lengths = LENGTHS if way == "ours" else LENGTHS[:2]
        memory[way] = {n: int(subprocess.check_output([*command, f"{way}:{n}"])) for n in lengths}
        cells = [f"{n} tokens {size / 2**20:.1f} MiB" for n, size in memory[way].items()]
        print(f"  memory, {way}: " + ", ".join(cells))
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {"title": "paged attention alone", "unit": f"ms, {unit}", "machine": machine(), "reads": reads}
    text = json.dumps({**kept, "cases": cases, "memory": memory}, indent=1)
    (options.out / "paged_attention.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
