"""Attention alone, bf16: our native operator beside PyTorch's, forward and backward, in turn in one process.

    python bench/attention.py [--rounds 30] [--out runs/bench]

Times are milliseconds for a call, the least and the median of all rounds: the least says what the machine can do, the
median what it did today. Documents and windows are said to PyTorch by a mask, which is how it can be told.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from _harness import arguments, machine
from openbook import runtime
from openbook.native.attention import attention
from openbook.nn.flash import flash
from openbook.nn.spec import Pattern
from openbook.nn.state import Dense

SHAPES: dict[str, dict[str, Any]] = {  # rows, tokens, heads, kv_heads, dim; what is seen
    "15m training": {"sizes": (8, 512, 6, 6, 48)},
    "124m training": {"sizes": (8, 512, 12, 12, 64)},
    "135m training": {"sizes": (8, 512, 9, 3, 64)},
    "15m, documents": {"sizes": (8, 512, 6, 6, 48), "documents": True},
    "124m, window 128": {"sizes": (8, 512, 12, 12, 64), "window": 128},
    "124m, one row of 2048": {"sizes": (1, 2048, 12, 12, 64)},
    "135m prefill, one row": {"sizes": (1, 512, 9, 3, 64), "forward": True},
    "15m prefill, 32 tokens": {"sizes": (1, 32, 6, 6, 48), "forward": True},
    "encoder": {"sizes": (8, 512, 12, 12, 64), "causal": False},
}
Mixer = Callable[[Tensor, Tensor, Tensor], Tensor]


def contenders(shape: dict[str, Any]) -> tuple[dict[str, Mixer], list[Tensor]]:
    """Both operators for a shape, and q, k, v and the output's gradient."""
    rows, tokens, heads, kv_heads, dim = shape["sizes"]
    pattern = Pattern(causal=shape.get("causal", True), window=shape.get("window"))
    segments = None
    if shape.get("documents"):
        segments = (torch.arange(tokens) // 170 + 1).expand(rows, tokens)
    (mask,) = Dense(torch.arange(tokens).expand(rows, tokens), segments, (pattern,), tokens).masks
    ours = partial(flash, causal=pattern.causal, window=pattern.window, segments=segments, scale=dim**-0.5)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x.transpose(1, 2) for x in (q, k, v))
        grouped, causal = heads != kv_heads, mask is None and pattern.causal
        mixed = scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return mixed.transpose(1, 2)

    counts = (heads, kv_heads, kv_heads, heads)
    return {"ours": ours, "pytorch": theirs}, [torch.randn(rows, tokens, n, dim).bfloat16() for n in counts]


def measure(shape: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each round, by contender and direction; the first two rounds are for warming up."""
    both, (*inputs, grad) = contenders(shape)
    train = not shape.get("forward")
    leaves = [x.requires_grad_(train) for x in inputs]
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "backward": []} for name in both}
    for turn in range(rounds + 2):
        for name, mixer in both.items():
            start = time.perf_counter()
            out = mixer(*leaves)
            middle = time.perf_counter()
            slopes = torch.autograd.grad(out, leaves, grad) if train else ()
            end = time.perf_counter()
            del out, slopes
            if turn > 1:
                times[name]["forward"].append(1e3 * (middle - start))
                times[name]["backward"].append(1e3 * (end - middle) if train else 0.0)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Least and median, forward, backward and both."""
    both = [f + b for f, b in zip(times["forward"], times["backward"], strict=True)]
    parts = {**times, "both": both}
    return {part: {"least": round(min(t), 3), "median": round(statistics.median(t), 3)} for part, t in parts.items()}


def main() -> None:
    options = arguments("Attention: ours beside PyTorch's.")
    torch.set_num_threads(runtime.default_threads())
    operator = attention()
    if operator is None:
        raise SystemExit("There is no native attention on this machine.")
    unit = {2: "AMX", 1: "AVX-512 BF16"}[operator.unit]
    print(f"bf16 attention with {unit}, {torch.get_num_threads()} threads: ms forward + backward, least (median)")
    cases: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        found = {who: summary(times) for who, times in measure(shape, options.rounds).items()}
        ratio = {k: round(found["pytorch"]["both"][k] / found["ours"]["both"][k], 2) for k in ("least", "median")}
        cases[name] = {"shape": shape, **found, "times faster": ratio}
        cells = []
        for who in ("ours", "pytorch"):
            forward, backward, both = (found[who][part] for part in ("forward", "backward", "both"))
            cells.append(f"{who} {forward['least']:.2f} + {backward['least']:.2f} ({both['median']:.2f})")
        print(f"  {name:<24} {'   '.join(cells)}   {ratio['least']}× ({ratio['median']}×)", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {"title": "attention alone", "unit": f"ms, {unit}", "machine": machine(), "cases": cases}
    (options.out / "attention.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
