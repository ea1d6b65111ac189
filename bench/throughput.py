"""Many requests at once: prompts and outputs of 100 to 1024 ids, total tokens/s beside engines that batch continuously.

    python bench/throughput.py [--requests 256] [--size 135m] [--rows 64] [--rounds 1] [--contenders …] [--out …]

All requests are handed over together; every engine has 2 GiB for keys and values (llama.cpp: `rows` whole sequences)
and runs `rows` sequences together at most. Counted are prompt and output ids. Of our engine, the seconds of each part
of a step are kept, and the scheduler's share of them.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from _contenders import KINDS, Place, chosen, prompts_of, starting, version_of
from _harness import Case, Results, Round, arguments, compare_cases, report, serve_cases
from _shapes import LLAMA_SHAPES

SHORTEST, LONGEST = 100, 1024
CONTENDERS = ["llama.cpp", "openvino", "vllm", "transformers-continuous", "ours-bf16", "ours-int8"]


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """A contender: who, size, requests, rows, threads, model."""
    who, size, requests, rows, threads, path = which.split("|")
    run = KINDS[who].open(Place(Path(path), int(rows), 2 * LONGEST, int(threads)))
    vocab, draw = LLAMA_SHAPES[size]["vocab"], random.Random(0)
    lengths = [(draw.randint(SHORTEST, LONGEST), draw.randint(SHORTEST, LONGEST)) for _ in range(int(requests))]
    new = [after for _, after in lengths]
    run(prompts_of(2, 64, vocab, 1), [8, 8])

    def case(_: str) -> Round:
        prompts = [prompts_of(1, before, vocab, number)[0] for number, (before, _) in enumerate(lengths)]
        start = time.perf_counter()
        more = run(prompts, new)
        return Round(float(sum(map(sum, lengths))), time.perf_counter() - start, more)

    return case, {"version": version_of(who)}


def parts(results: Results) -> None:
    """How a step of our engine divides its seconds."""
    phases = ("schedule", "pack", "model", "choose", "commit")
    for name, result in results.items():
        for more in result.get("more", []):
            whole = sum(more.get(phase, 0.0) for phase in phases) or 1.0
            found = {phase: more.get(phase, 0.0) / whole for phase in phases}
            result["scheduler_share"] = round(found["schedule"] + found["commit"], 4)
            print(f"  {name}: " + ", ".join(f"{phase} {share:.1%}" for phase, share in found.items()) + " of its steps")


def main(options: Any) -> None:
    """One case, as many rounds as asked."""
    here = chosen(options.contenders, CONTENDERS)
    words = f"{options.size}|{options.requests}|{options.rows}"
    contenders = starting(options.size, here, options.models, words)
    case = f"{options.size}, {options.requests} requests"
    results = compare_cases(contenders, [case], options.rounds)[case]
    report("throughput", "Offline throughput", "tokens/s, read and written", {case: results}, options.out, "best")
    parts(results)


if __name__ == "__main__":
    more = {"size": "135m", "requests": 256, "rows": 64, "contenders": ""}
    options = arguments(__doc__ or "", models=Path("runs/bench/models"), rounds=1, **more)
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
