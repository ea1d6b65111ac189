"""Latent attention beside usual heads of the same number and width: a step of decoding from pages, and what is kept.

    python bench/latent.py [--rounds 7] [--dim 1024] [--heads 16] [--rank 256] [--rows 8]

Both are served in bf16, one block each of attention and a feed-forward layer, with bf16 pages. Heads have 64 features;
the latent one turns 32 more. A case is a number of tokens that every row has behind it.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from _harness import Case, Contender, Results, Round, arguments, compare_cases, report, serve_cases
from openbook.generate.packed import Biases, Packed
from openbook.generate.pages import Pool
from openbook.generate.plan import Ask, Sequence, Work
from openbook.generate.store import Store
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.serving import serve_form
from openbook.nn.state import PerToken

CONTEXTS = (128, 1024, 8192)
HEAD, TURNED = 64, 32
LEAST = 0.2  # seconds of a round


def model_of(who: str, dim: int, heads: int, rank: int) -> Any:
    """One block, served in bf16."""
    layer: spec.Attention | spec.LatentAttention
    if who == "latent":
        layer = spec.LatentAttention(
            heads=heads, kv_rank=rank, nope_dim=HEAD, value_dim=HEAD, q_rank=dim // 2, rope=spec.Rope(dim=TURNED)
        )
    else:
        layer = spec.Attention(heads=heads, kv_heads=heads, head_dim=HEAD, rope=spec.Rope(dim=HEAD))
    branches = tuple(spec.Branch(layer=one, norm=spec.Norm()) for one in (layer, spec.MLP(hidden=3 * dim)))
    stack = spec.Stack(dim=dim, blocks=(spec.Block(branches=branches),), final_norm=spec.Norm())
    return serve_form(make(spec.Model(embed=spec.Embed(vocab=64, dim=dim), stack=stack, heads=())).eval(), "bf16")


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """Who, and the sizes: dim, heads, rank, rows."""
    who, *sizes = which.split("|")
    dim, heads, rank, rows = map(int, sizes)
    model, memory = model_of(who, dim, heads, rank), 2 << 30
    store = Store(model, memory, torch.bfloat16)
    pool = Pool(store.shape, memory, prefix_cache=False)
    sequences = [Sequence(Ask(key=n, ids=[1] * max(CONTEXTS), room=1, root=b""), 1) for n in range(rows)]
    for sequence in sequences:
        pool.grow(sequence, max(CONTEXTS))

    @torch.no_grad()
    def read(start: int, count: int) -> None:
        state = Packed(store, [Work(one, start, count, True) for one in sequences], [0] * rows, Biases())
        model.hidden(state.ids, cache=state)

    for start in range(0, max(CONTEXTS), 512):
        read(start, 512)

    def case(name: str) -> Round:
        place, done = int(name) - 1, 0
        read(place, 1)
        start = time.perf_counter()
        while not done or time.perf_counter() - start < LEAST:
            read(place, 1)
            done += 1
        return Round(done * rows, time.perf_counter() - start)

    kept = sum(2 * one.numbers for one in model.states if isinstance(one, PerToken))
    return case, {"bytes of a token": kept}


def main(options: Any) -> None:
    """Every length, in turn."""
    sizes = f"{options.dim}|{options.heads}|{options.rank}|{options.rows}"
    contenders = {who: Contender(["--child", f"{who}|{sizes}"]) for who in ("latent", "heads")}
    found: dict[str, Results] = compare_cases(contenders, [str(n) for n in CONTEXTS], options.rounds)
    title = f"{options.rows} rows, {options.heads} heads of {HEAD}, latent of {options.rank} + {TURNED}"
    kept = {"sizes": {name: getattr(options, name) for name in ("dim", "heads", "rank", "rows")}}
    report("latent", title, "tokens/s", found, options.out, "heads", **kept)


if __name__ == "__main__":
    options = arguments(__doc__ or "", rounds=7, dim=1024, heads=16, rank=256, rows=8)
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
