"""Training speed at 15M and 124M parameters, 8 × 512 tokens a step, beside transformers and a plain compiled model.

    python bench/train.py [--sizes 15m,124m] [--rounds 7] [--out runs/bench]

ours: the steps of `openbook pretrain` (loop.advance: counts, forward, backward, norms, clipping, AdamW) with compiled
blocks. transformers: a good plain loop (bf16 autocast, fused AdamW, clipping). plain compiled: the blocks in plain
PyTorch with scaled_dot_product_attention, compiled as a whole, same loop. Rows are whole, without document masks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _harness import Work, arguments, compare, report, serve
from _shapes import ours, theirs

ROWS, TOKENS = 8, 512


def data(vocab: int) -> Tensor:
    """Ids [rows, tokens + 1]."""
    return torch.randint(0, vocab, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(0))


def our_loop(size: str) -> tuple[Work, dict[str, Any]]:
    """The training loop as `openbook pretrain` runs it, on fixed rows."""
    from openbook import runtime
    from openbook.data.batch import Batch
    from openbook.models.cost import inventory, work
    from openbook.models.make import make
    from openbook.train.loop import advance
    from openbook.train.objectives import Language
    from openbook.train.optim import Optimisation, Optimizer
    from openbook.train.run import Plan, Run
    from openbook.train.schedules import Schedule
    from openbook.train.speed import compile_blocks

    runtime.keep_memory()
    model = make(ours(size)).train()
    model.compute_dtype = torch.bfloat16
    compile_blocks(model)
    ids = data(model.spec.embed.vocab)

    class Fixed:
        def batch(self, start: int, rows: int) -> Batch:  # noqa: ARG002
            return Batch(ids=ids[:rows, :-1], positions=None, segments=None, targets={"language": ids[:rows, 1:]})

    run = Run(
        model=model,
        objective=Language(),
        rows=Fixed(),
        optimizer=Optimizer(model, Optimisation(lr=1e-4)),
        schedule=Schedule(shape="constant"),
        plan=Plan(steps=10**6, rows=((0, ROWS),)),
    )
    return _repeated(lambda: advance(run), size), {"flops_per_token": work(inventory(model.spec), TOKENS).training}


class PlainBlock(nn.Module):
    """A block as most would write it; `gated` for the Llama shape, else GPT-2's."""

    def __init__(self, dim: int, heads: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.heads, self.gated = heads, gated
        norm = nn.RMSNorm if gated else nn.LayerNorm
        self.one, self.two = norm(dim), norm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, not gated), nn.Linear(dim, dim, not gated)
        self.up, self.down = nn.Linear(dim, hidden * (1 + gated), not gated), nn.Linear(hidden, dim, not gated)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.one(x)).chunk(3, -1))
        if self.gated:
            q, k = (t * cos + torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * sin for t in (q, k))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        h = self.up(self.two(x))
        h = F.silu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1] if self.gated else F.gelu(h, approximate="tanh")
        return x + self.down(h)


class Plain(nn.Module):
    """Embedding, blocks, norm, tied head."""

    def __init__(self, vocab: int, dim: int, layers: int, heads: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.embed, self.gated = nn.Embedding(vocab, dim), gated
        self.place = None if gated else nn.Embedding(1024, dim)
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, hidden, gated) for _ in range(layers))
        self.norm = nn.RMSNorm(dim) if gated else nn.LayerNorm(dim)
        angles = torch.outer(torch.arange(TOKENS).float(), 1e4 ** -(torch.arange(0, dim // heads, 2) / (dim // heads)))
        self.register_buffer("angles", torch.cat([angles, angles], -1))
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.place is not None:
            x = x + self.place.weight[: ids.shape[1]]
        cos, sin = self.angles.cos().to(torch.bfloat16), self.angles.sin().to(torch.bfloat16)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def their_loop(size: str, compiled: bool) -> tuple[Work, dict[str, Any]]:
    """A good plain loop: autocast to bf16, fused AdamW, clipping."""
    torch.manual_seed(0)
    model: Any
    if compiled:
        llama = size == "15m"
        model = Plain(*((32000, 288, 6, 6, 768, True) if llama else (50257, 768, 12, 12, 3072, False)))
        run = torch.compile(model)
    else:
        model = theirs(size).train()

        def run(ids: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(model(ids).logits.float().flatten(0, 1), targets.flatten())

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    ids = data(50257 if size == "124m" else 32000)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.item()

    return _repeated(step, size), {}


def _repeated(step: Any, size: str) -> Work:
    count = 4 if size == "15m" else 1

    def work() -> float:
        for _ in range(count):
            step()
        return float(count * ROWS * TOKENS)

    for _ in range(2):
        step()
    return work


def setup(which: str) -> tuple[Work, dict[str, Any]]:
    """A contender by its name and size."""
    who, size = which.split(":")
    return our_loop(size) if who == "ours" else their_loop(size, who == "compiled")


if __name__ == "__main__":
    options = arguments(__doc__ or "", sizes="15m,124m")
    if options.child:
        serve(setup, options.child)
    else:
        from openbook import runtime

        names = {"transformers": "transformers", "plain compiled": "compiled", "ours": "ours"}
        cases = {
            size: compare({name: ["--child", f"{key}:{size}"] for name, key in names.items()}, options.rounds)
            for size in options.sizes.split(",")
        }
        peak = runtime.peaks().bfloat16
        for size, results in cases.items():
            rate = results["ours"]["median"] * results["ours"]["flops_per_token"] / 1e9
            results["ours"] |= {"gflops": round(rate, 1), "peak_gflops": peak, "share_of_peak": round(rate / peak, 4)}
            print(f"{size}: ours {rate:,.0f} GFLOP/s, {rate / peak:.1%} of the measured bf16 peak {peak:,.0f}")
        report("train", "Training, 8 × 512 tokens", "tokens/s", cases, options.out, "transformers")
