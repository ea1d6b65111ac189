"""Recurrent layers: ours beside torch.nn.RNN, LSTM and GRU, forward alone and with the backward pass, in one process.

    python bench/recurrent.py [--rounds 9] [--threads 2] [--out runs/bench]

Both get the same weights and inputs and take turns; which goes first changes from round to round. Times are
milliseconds, the least and the median of the rounds. "documents": rows of several texts whose state begins anew, which
torch.nn cannot say; it stands beside torch.nn's plain rows.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _harness import arguments, machine
from openbook.nn import spec
from openbook.nn.recurrent import RecurrentLayer, from_torch
from openbook.nn.state import Context, Dense

ROWS, TOKENS, DIM = 16, 256, 512
CASES: dict[str, dict[str, Any]] = {  # the layer; what it computes in
    "lstm": {"layer": spec.Recurrent(cell="lstm", hidden=DIM)},
    "gru": {"layer": spec.Recurrent(cell="gru", hidden=DIM)},
    "rnn": {"layer": spec.Recurrent(cell="rnn", hidden=DIM)},
    "lstm, both ways": {"layer": spec.Recurrent(cell="lstm", hidden=DIM // 2, direction="both")},
    "lstm, projected": {"layer": spec.Recurrent(cell="lstm", hidden=2 * DIM, projection=DIM)},
    "lstm, documents": {"layer": spec.Recurrent(cell="lstm", hidden=DIM), "documents": True},
    "lstm, bf16": {"layer": spec.Recurrent(cell="lstm", hidden=DIM), "dtype": torch.bfloat16},
    "gru, bf16": {"layer": spec.Recurrent(cell="gru", hidden=DIM), "dtype": torch.bfloat16},
}
Run = Callable[[Tensor], Tensor]


def contenders(case: dict[str, Any]) -> tuple[dict[str, Run], list[nn.Module], Tensor]:
    """Both layers for a case, with equal weights, and their input."""
    layer: spec.Recurrent = case["layer"]
    dtype = case.get("dtype", torch.float32)
    kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[layer.cell]
    both = layer.direction == "both"
    more = {"proj_size": layer.projection} if layer.projection else {}
    theirs = kind(DIM, layer.hidden, batch_first=True, bidirectional=both, **more).to(dtype)
    ours = RecurrentLayer(layer, DIM)
    ours.load_state_dict(from_torch(theirs.state_dict())[0])
    ours = ours.to(dtype)
    segments = (torch.arange(TOKENS) // 60 + 1).expand(ROWS, TOKENS) if case.get("documents") else None
    ctx = Context(Dense(torch.arange(TOKENS).expand(ROWS, TOKENS), segments, (), TOKENS), ())
    runs: dict[str, Run] = {"ours": lambda x: ours(x, ctx), "pytorch": lambda x: theirs(x)[0]}
    return runs, [ours, theirs], torch.randn(ROWS, TOKENS, DIM, dtype=dtype)


def measure(case: dict[str, Any], rounds: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Milliseconds of each round, by contender and part, after one to warm up; and the greatest difference."""
    runs, modules, x = contenders(case)
    parameters = {name: list(module.parameters()) for name, module in zip(runs, modules, strict=True)}
    grad, outs = torch.randn_like(x), {}
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in runs}
    for turn in range(rounds + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            with torch.no_grad():
                outs[name] = runs[name](x)
            middle = time.perf_counter()
            own = x.requires_grad_()
            torch.autograd.grad(runs[name](own), [own, *parameters[name]], grad)
            end = time.perf_counter()
            if turn:
                times[name]["forward"].append(1e3 * (middle - start))
                times[name]["both"].append(1e3 * (end - middle))
    apart = (outs["ours"].float() - outs["pytorch"].float()).abs().max().item()
    return times, 0.0 if case.get("documents") else apart


def main() -> None:
    options = arguments("Recurrent layers: ours beside PyTorch's.", rounds=9, threads=2)
    torch.set_num_threads(options.threads)
    print(f"{ROWS} rows of {TOKENS} tokens, dim {DIM}, {options.threads} threads: ms, least (median)")
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        times, apart = measure(case, options.rounds)
        parts: dict[str, Any] = {}
        for part in ("forward", "both"):
            least = {who: min(each[part]) for who, each in times.items()}
            median = {who: statistics.median(each[part]) for who, each in times.items()}
            parts[part] = {
                "least": {who: round(value, 2) for who, value in least.items()},
                "median": {who: round(value, 2) for who, value in median.items()},
                "ratio": {
                    "least": round(least["ours"] / least["pytorch"], 3),
                    "median": round(median["ours"] / median["pytorch"], 3),
                },
            }
        found[name] = {**parts, "difference": apart, "load": round(os.getloadavg()[0], 2)}
        cells = [
            f"{part} {p['least']['ours']:.0f} ({p['median']['ours']:.0f}) of "
            f"{p['least']['pytorch']:.0f} ({p['median']['pytorch']:.0f}) = {p['ratio']['least']:.2f} "
            f"({p['ratio']['median']:.2f})"
            for part, p in parts.items()
        ]
        print(f"  {name:<18} {'   '.join(cells)}   load {found[name]['load']}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {
        "title": "recurrent layers beside torch.nn: time of ours by time of theirs",
        "unit": "ms, least and median; `both`: forward and backward",
        "shape": {"rows": ROWS, "tokens": TOKENS, "dim": DIM},
        "machine": {**machine(), "threads": options.threads},
        "cases": found,
    }
    (options.out / "recurrent.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
