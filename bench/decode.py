"""Prefill and decoding at 15M, 135M and 1.1B parameters, one to 32 requests, beside the engines a user would pick.

    python bench/decode.py [--sizes 15m,135m,1.1b] [--batches 1,8,32] [--rounds 5] [--only prefill|decode]
                           [--contenders ours-int8,llama.cpp,…] [--models runs/bench/models] [--out runs/bench]

Prefill: a prompt of 512 ids and one new id. Decode: after a prompt of 64, the 63 ids that follow the first; its time
is that of a call for 64 ids less that of a call for one, for every engine alike. Greedy, end ids ignored, prompts of
random ids that are new in every call. Engines that are not installed are left out with a line (bench/README.md).
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from _contenders import KINDS, Place, chosen, prompts_of, starting, version_of
from _harness import Case, Results, Round, arguments, compare_cases, report, serve_cases
from _shapes import LLAMA_SHAPES, matrix_weights

PREFILL, PROMPT, NEW = 512, 64, 64
LEAST = 0.4  # seconds that a round lasts at least: short calls are repeated


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """A contender: who, size, batches (joined by commas), threads, model."""
    who, size, batches, threads, path = which.split("|")
    rows = max(int(batch) for batch in batches.split(","))
    run = KINDS[who].open(Place(Path(path), rows, 640, int(threads)))
    vocab, seeds = LLAMA_SHAPES[size]["vocab"], itertools.count()

    def spent(rows: int, prompt: int, new: int) -> float:
        prompts = prompts_of(rows, prompt, vocab, next(seeds))
        start = time.perf_counter()
        run(prompts, [new] * rows)
        return time.perf_counter() - start

    def case(name: str) -> Round:
        what, batch = name.split(" × ")
        rows, amount, seconds, whole = int(batch), 0.0, 0.0, 0.0
        while whole < LEAST:
            if what == "prefill":
                took = more = spent(rows, PREFILL, 1)
                amount += rows * PREFILL
            else:
                first, all_of_it = spent(rows, PROMPT, 1), spent(rows, PROMPT, NEW)
                took, more = all_of_it - first, all_of_it + first
                amount += rows * (NEW - 1)
            seconds, whole = seconds + took, whole + more
        return Round(amount, seconds)

    for batch in batches.split(","):
        spent(int(batch), PROMPT, 1), spent(int(batch), PROMPT, 8)
    spent(1, PREFILL, 1)
    return case, {"version": version_of(who)}


def shares(size: str, case: str, results: Results, limits: Any) -> None:
    """Beside every rate: how much of the machine's memory bandwidth and matrix peak it is, counting weights only."""
    what, batch = case.split(" × ")
    weights = matrix_weights(size)
    for who, result in results.items():
        kind = KINDS[who]
        peak = limits.bfloat16 if kind.weight_bytes == 2 or limits.int8 is None else limits.int8
        result["share_of_peak"] = round(2 * weights * result["median"] / 1e9 / peak, 4)
        if what == "decode":
            steps = result["median"] / int(batch)
            result["share_of_bandwidth"] = round(steps * weights * kind.weight_bytes / 1e9 / limits.read, 4)


def main(options: Any) -> None:
    """All sizes, one after the other."""
    from openbook import runtime

    default = [name for name in KINDS if name not in ("ours-loop", "transformers-continuous")]
    here = chosen(options.contenders, default)
    limits = runtime.peaks(again=True)
    print(f"This machine reads {limits.read} GB/s and does {limits.bfloat16} GFLOP/s in bf16, {limits.int8} in int8.")
    cases: dict[str, Results] = {}
    for size in options.sizes.split(","):
        names = ["prefill × 1"] if options.only != "decode" else []
        names += [f"decode × {batch}" for batch in options.batches.split(",")] if options.only != "prefill" else []
        contenders = starting(size, here, options.models, f"{size}|{options.batches}")
        for name, results in compare_cases(contenders, names, options.rounds).items():
            shares(size, name, results, limits)
            cases[f"{size} {name}"] = results
    report("decode", "Prefill and decoding", "tokens/s", cases, options.out, "best", limits=vars(limits))
    for case, results in cases.items():
        for who in (name for name in results if name.startswith("ours")):
            found = [f"{results[who][key]:.0%} of the {word}" for key, word in SHARES.items() if key in results[who]]
            print(f"  {case:<22} {who}: {', '.join(found)}")


SHARES = {"share_of_bandwidth": "memory bandwidth", "share_of_peak": "matrix peak"}

if __name__ == "__main__":
    more = {"sizes": "15m,135m,1.1b", "batches": "1,8,32", "contenders": "", "only": ""}
    options = arguments(__doc__ or "", rounds=5, models=Path("runs/bench/models"), **more)
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
