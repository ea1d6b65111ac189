"""Experts: the grouped path beside the usual loop (for each expert: pick its tokens, run its network, add them back).

    python bench/moe.py [--rounds 7] [--dim 512] [--hidden 1024] [--experts 8] [--top 2]

Forward: ours is what a served model runs, packed matrices in bf16 and plain ones in fp32. Training: forward and
backward of what a model in training runs. The loop is that of the field: stacked matrices, `where`, `index_add`. With
few tokens an expert's share is small and the loop pays for its steps, and in the backward pass for a gradient as large
as the whole stack for every expert; with many tokens both are bound by the same matrix products.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

from _harness import Case, Contender, Results, Round, arguments, compare_cases, report, serve_cases
from openbook.nn import spec
from openbook.nn.moe import Experts
from openbook.nn.packed import PackedStack
from openbook.nn.serving import STACKS

TOKENS = {"forward": (1, 8, 64, 512), "training": (8, 64, 512, 2048)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST = 0.05  # seconds of a round


def loop(experts: Experts, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What most libraries run."""
    out = torch.zeros_like(x)
    assert experts.gate is not None
    for number in range(len(experts.up)):
        tokens, choice = torch.where(chosen == number)
        rows = x[tokens]
        hidden = F.silu(F.linear(rows, experts.gate[number])) * F.linear(rows, experts.up[number])
        out.index_add_(0, tokens, F.linear(hidden, experts.down[number]) * weights[tokens, choice, None])
    return out


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """Who, and the sizes: dim, hidden, experts, experts of a token."""
    who, *sizes = which.split("|")
    dim, hidden, count, top = map(int, sizes)
    layer = spec.MoE(experts=count, top_k=top, expert=spec.MLP(hidden=hidden))
    torch.manual_seed(0)
    models = {}
    for name, dtype in DTYPES.items():
        made = Experts(layer, dim)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        models[name] = made.to(dtype)
    served = Experts(layer, dim)
    served.load_state_dict(models["bf16"].state_dict())
    for name in STACKS:
        stacked = served._parameters.pop(name)
        assert stacked is not None
        served.add_module(name, PackedStack.of(stacked, "bf16"))

    def once(case: str) -> Any:
        what, dtype, tokens = case.split()
        x = torch.randn(int(tokens), dim).to(DTYPES[dtype])
        weights, chosen = torch.rand(int(tokens), count).softmax(-1).topk(top, -1)
        weights = weights.to(x.dtype)
        experts = models[dtype]
        if what == "training":
            x.requires_grad_()
            run = (lambda: loop(experts, x, chosen, weights)) if who == "loop" else lambda: experts(x, chosen, weights)

            def step() -> None:
                experts.zero_grad()
                run().sum().backward()

            return step
        if who == "loop":
            return torch.no_grad()(lambda: loop(experts, x, chosen, weights))
        if dtype == "bf16":
            experts, x, weights = served, x.float(), weights.float()
        return torch.no_grad()(lambda: experts(x, chosen, weights))

    def case(name: str) -> Round:
        work, done = once(name), 0
        work()
        start = time.perf_counter()
        while not done or time.perf_counter() - start < LEAST:
            work()
            done += 1
        return Round(done * int(name.split()[2]), time.perf_counter() - start)

    return case, {}


def main(options: Any) -> None:
    """Every case, in turn."""
    sizes = f"{options.dim}|{options.hidden}|{options.experts}|{options.top}"
    contenders = {who: Contender(["--child", f"{who}|{sizes}"]) for who in ("ours", "loop")}
    cases = [f"{what} {dtype} {tokens}" for what, all_ in TOKENS.items() for dtype in DTYPES for tokens in all_]
    found: dict[str, Results] = compare_cases(contenders, cases, options.rounds)
    title = f"{options.top} of {options.experts} experts, {options.dim} → {options.hidden}"
    kept = {"sizes": {name: getattr(options, name) for name in ("dim", "hidden", "experts", "top")}}
    report(f"moe_{options.experts}", title, "tokens/s", found, options.out, "loop", **kept)


if __name__ == "__main__":
    options = arguments(__doc__ or "", rounds=7, dim=512, hidden=1024, experts=8, top=2)
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
