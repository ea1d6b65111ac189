"""Speculation: a copying task with drafts from the text, and drafts that are right with a known chance.

    python bench/speculation.py [--size 135m] [--copied 256] [--rounds 3] [--contenders ours-int8,ours-bf16]

The weights are random, so what is written is prescribed (`Sampling.forced`): all the arithmetic is done, the choice
alone is known beforehand. Copy: the output repeats the prompt, drafts come from looking it up (Saxena 2023). α: a
drafter that knows the output and is right with chance α; its acceptance and tokens per pass stand beside the prediction
(1 − α^(γ+1)) / (1 − α), summed over the passes with their own γ (Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _contenders import Place, chosen, our_engine, prompts_of, starting
from _harness import Case, Results, Round, arguments, compare_cases, report, serve_cases
from _shapes import LLAMA_SHAPES

CASES = ["copy, plain", "copy, lookup", "α=0.7", "α=0.8"]


class Scripted:
    """A drafter that knows what will be written and is right with chance `alpha`, independently for every token."""

    cost = 0.02

    def __init__(self, alpha: float, text: Sequence[int]) -> None:
        self.alpha, self.text, self.draw = alpha, text, random.Random(0)
        self.predicted = 0.0  # tokens of all passes, by the formula

    def propose(self, sequences: Sequence[Any], lines: Sequence[Any], counts: Sequence[int]) -> list[Any]:  # noqa: ARG002
        """Up to `counts[i]` drafts for each."""
        from openbook.generate.speculate import Proposal, expected

        found = []
        for line, count in zip(lines, counts, strict=True):
            at = len(line.row.output)
            right = self.text[at : at + count]
            self.predicted += expected(self.alpha, len(right))
            found.append(Proposal([i if self.draw.random() < self.alpha else 3 + i % 7 for i in right]))
        return found

    def forget(self, sequence: Any) -> None:
        """Nothing is kept."""


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """Ours: which form, size, ids to copy, threads, model."""
    from openbook.generate.drafting import LookupDrafter, Speculator
    from openbook.generate.sampling import Sampling

    who, size, copied, _, path = which.split("|")
    engine = our_engine(Place(Path(path), 4, 0, 0), who, prefix_cache=True)
    (text,) = prompts_of(1, int(copied), LLAMA_SHAPES[size]["vocab"], 1)
    sampling = Sampling(max_tokens=len(text), temperature=0.0, ignore_eos=True, forced=tuple(text))
    most = engine.settings.drafts

    def case(name: str) -> Round:
        drafter: Any = None if name == "copy, plain" else LookupDrafter()
        if name.startswith("α"):
            drafter = Scripted(float(name[2:]), text)
        engine.speculator = None if drafter is None else Speculator(drafter, most)
        start = time.perf_counter()
        (done,) = engine.generate([text], sampling)
        seconds = time.perf_counter() - start
        if done.ids != text:
            raise RuntimeError("speculation changed what was written")
        if engine.speculator is None:
            return Round(float(len(text)), seconds)
        tally = engine.speculator.tally
        more = {"passes": tally.passes, "drafts": tally.proposed, "acceptance": tally.alpha, "tokens": tally.tokens}
        if isinstance(drafter, Scripted):
            more["predicted"] = drafter.predicted
        return Round(float(len(text)), seconds, more)

    for name in CASES:
        case(name)
    return case, {}


def main(options: Any) -> None:
    """All cases in turn; what was accepted beside what was predicted."""
    here = chosen(options.contenders, ["ours-int8", "ours-bf16"])
    contenders = starting(options.size, here, options.models, f"{options.size}|{options.copied}")
    found = compare_cases(contenders, CASES, options.rounds)
    cases: dict[str, Results] = {
        f"{options.size}, {who}": {what: results[who] for what, results in found.items()} for who in found[CASES[0]]
    }
    report("speculation", "Speculation, one request", "tokens/s", cases, options.out, CASES[0])
    for case, results in cases.items():
        for what in CASES[1:]:
            last = results[what]["more"][-1]
            per_pass = last["tokens"] / max(1, last["passes"])
            line = f"  {case:<18} {what:<13} {last['acceptance']:.3f} accepted, {per_pass:.2f} tokens a pass"
            if "predicted" in last:
                line += f" (the formula: {last['predicted'] / last['passes']:.2f})"
            print(line + f", {results[what]['median'] / results[CASES[0]]['median']:.2f}× as fast")


if __name__ == "__main__":
    more = {"size": "135m", "copied": 256, "contenders": ""}
    options = arguments(__doc__ or "", rounds=3, models=Path("runs/bench/models"), **more)
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
