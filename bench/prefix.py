"""Time to the first token after a shared prefix of 2,000 ids: read for the first time (cold) and found again (hit).

    python bench/prefix.py [--size 135m] [--prefix 2000] [--tail 16] [--rounds 5] [--contenders ours-int8,ours-bf16]

Every request ends with ids of its own. Cold: a prefix that was never seen. Hit: one that an earlier request has left.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from _contenders import Place, chosen, our_engine, prompts_of, starting
from _harness import Case, Results, Round, arguments, compare_cases, report, serve_cases
from _shapes import LLAMA_SHAPES


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """Ours: which form, size, ids of the prefix and of the tail, threads, model."""
    from openbook.generate.sampling import Sampling

    who, size, prefix, tail, _, path = which.split("|")
    engine = our_engine(Place(Path(path), 4, 0, 0), who, prefix_cache=True)
    vocab, seeds = LLAMA_SHAPES[size]["vocab"], itertools.count(1)

    def fresh(length: str) -> list[int]:
        return prompts_of(1, int(length), vocab, next(seeds))[0]

    def first_token(ids: list[int]) -> tuple[float, float]:
        cached, start = engine.stats.cached_tokens, time.perf_counter()
        engine.generate([ids], Sampling(max_tokens=1, temperature=0.0, ignore_eos=True))
        return time.perf_counter() - start, engine.stats.cached_tokens - cached

    known = fresh(prefix)
    for _ in range(2):
        first_token(known + fresh(tail))

    def case(name: str) -> Round:
        seconds, cached = first_token((known if name == "hit" else fresh(prefix)) + fresh(tail))
        return Round(1.0, seconds, {"cached": cached})

    return case, {}


def main(options: Any) -> None:
    """Cold and hit, in turn."""
    here = chosen(options.contenders, ["ours-int8", "ours-bf16"])
    contenders = starting(options.size, here, options.models, f"{options.size}|{options.prefix}|{options.tail}")
    found = compare_cases(contenders, ["cold", "hit"], options.rounds)
    cases: dict[str, Results] = {
        f"{options.size}, {who}": {what: results[who] for what, results in found.items()} for who in found["cold"]
    }
    title = f"First token after a prefix of {options.prefix} ids"
    report("prefix", title, "requests/s", cases, options.out, "cold")
    for case, results in cases.items():
        cold, hit = (1e3 / results[what]["median"] for what in ("cold", "hit"))
        kept = results["hit"]["more"][-1]["cached"]
        print(f"  {case:<22} {cold:,.1f} ms → {hit:,.1f} ms: {cold / hit:.1f}× sooner; {kept:.0f} ids found again")


if __name__ == "__main__":
    more = {"size": "135m", "prefix": 2000, "tail": 16, "contenders": ""}
    options = arguments(__doc__ or "", rounds=5, models=Path("runs/bench/models"), **more)
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
