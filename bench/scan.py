"""The scan of a state space beside the step loop, and what a state of fixed size is worth beside attention.

    python bench/scan.py [--threads 2] [--rounds 5] [--channels 512] [--longest 65536]

Three tables. Scan: one layer's recurrence of T tokens, forward, and forward with backward: token after token in PyTorch
(`scan_reference`), one operator over states in memory (`scan`, the fallback without a compiler) and the native one.
Prefill and decoding: a whole mixer of Mamba 1, of Mamba 2 and of attention, all of one width: seconds for a prompt of T
tokens, and for one more token behind T. Contenders take turns; medians over the rounds, the machine's load beside them.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _harness import arguments
from openbook.models.cost import inventory
from openbook.models.make import make
from openbook.models.memory import state
from openbook.nn import scan, spec
from openbook.nn.model import LanguageModel
from openbook.nn.serving import serve_form
from openbook.nn.state import Context, Dense, PerSequence, Recurrence, Scores

LENGTHS = (512, 2048, 8192)
LOOP = 2048  # tokens beyond which the step loop's backward pass takes more memory than most machines have
STEPS = 20  # tokens of a measurement of decoding
Work = Callable[[], object]


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(contenders: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """The median seconds of each, one after the other in every round; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            found = seconds(work)
            if number:
                taken[name].append(found)
    return {name: statistics.median(found) for name, found in taken.items()}


# ------------------------------------------------------------------------------------------------ the scan


def scans(channels: int, rounds: int) -> list[dict[str, Any]]:
    """Forward, and forward with backward, of each form at each length."""
    found = []
    for tokens in LENGTHS:
        x, step = torch.randn(1, tokens, channels), torch.rand(1, tokens, channels) * 0.1
        write, read = torch.randn(1, tokens, 1, 16), torch.randn(1, tokens, 1, 16)
        decay = -torch.arange(1.0, 17).unsqueeze(1).expand(16, channels).contiguous()
        inputs = [x, step, write, read, decay, torch.ones(channels), torch.zeros(1, 16, channels)]
        forms: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
            "loop": lambda *given: scan.selective_reference(*given, states=scan.scan_reference),
            "operator": scan.selective_reference,
            "native": scan.selective,
        }
        for way in ("forward", "forward and backward"):
            learns = way != "forward"
            kept = {n: f for n, f in forms.items() if n != "loop" or not learns or tokens <= LOOP}
            works = {name: run_of(form, inputs, learns) for name, form in kept.items()}
            medians = in_turn(works, rounds if tokens <= LOOP else max(1, rounds // 2))
            found.append({"tokens": tokens, "way": way, "seconds": medians, "load": os.getloadavg()[0]})
            ratios = "".join(
                f"{medians[n] * 1e3:12.1f} ms{medians[n] / medians['native']:7.1f}x" if n in medians else " " * 23
                for n in ("loop", "operator")
            )
            print(f"{way:22}{tokens:7}{ratios}{medians['native'] * 1e3:12.1f} ms", flush=True)
    return found


def run_of(form: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], learns: bool) -> Work:
    """One run of a form over these inputs."""

    def work() -> None:
        own = [one.clone().requires_grad_(learns) for one in inputs]
        with torch.set_grad_enabled(learns):
            y, _ = form(*own[:6], None, own[6])
        if learns:
            y.sum().backward()

    return work


# ------------------------------------------------------------------------------------------------ beside attention


class Kept(Dense):
    """One layer's state: keys and values of `before` tokens, or a recurrent state."""

    def __init__(self, tokens: int, before: int, layer: spec.Layer) -> None:
        super().__init__(torch.zeros(1, tokens, dtype=torch.int64), None, (), before + tokens)
        self.keys: tuple[Tensor, Tensor] | None = None
        if before and isinstance(layer, spec.Attention):
            size = (1, before + tokens, layer.kv_heads, layer.head_dim)
            self.keys = torch.randn(size), torch.randn(size)
        self.slot: tuple[Tensor, ...] | None = None

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:  # noqa: ARG002
        if self.keys is not None:
            for kept, new in zip(self.keys, (k, v), strict=True):
                kept[:, -new.shape[1] :] = new
            k, v = self.keys
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        causal = q.shape[2] > 1
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:  # noqa: ARG002
        out, self.slot = run(x, self.slot, None)
        return out


def mixers(dim: int) -> dict[str, spec.Layer]:
    """Layers of one width."""
    return {
        "attention": spec.Attention(heads=dim // 64, kv_heads=dim // 64, head_dim=64),
        "mamba": spec.Selective(inner=2 * dim, rank=dim // 16),
        "mamba 2": spec.StateSpaceDual(heads=2 * dim // 64, head_dim=64, norm=spec.Norm()),
    }


def model_of(layer: spec.Layer, dim: int) -> LanguageModel:
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=spec.Norm()),))
    stack = spec.Stack(dim=dim, blocks=(block,), final_norm=spec.Norm())
    return serve_form(make(spec.Model(embed=spec.Embed(vocab=64, dim=dim), stack=stack, heads=())).eval(), "fp32")


def steps_of(layer: torch.nn.Module, x: Tensor, kept: Kept, count: int = STEPS) -> Work:
    """Some steps of a layer over x behind what is kept."""

    def work() -> None:
        for _ in range(count):
            layer(x, Context(kept, ()))

    return work


def beside_attention(dim: int, longest: int, rounds: int) -> list[dict[str, Any]]:
    """Prefill of T tokens and one more token behind T, for each mixer; bytes kept behind T."""
    layers, found = mixers(dim), []
    models = {name: model_of(layer, dim) for name, layer in layers.items()}
    parts = {name: model.stack.blocks[0].branches[0].layer for name, model in models.items()}  # type: ignore[union-attr,index]
    sizes = {name: state(inventory(model.spec)) for name, model in models.items()}
    tokens = 1024
    while tokens <= longest:
        prompt, one = torch.randn(1, tokens, dim), torch.randn(1, 1, dim)
        states = {name: Kept(1, tokens, layer) for name, layer in layers.items()}
        for name, part in parts.items():  # a slot to begin with
            kept = part.declare()
            if isinstance(kept, PerSequence):
                states[name].slot = tuple(torch.zeros(1, *shape) for shape in kept.shapes)
        decode = {name: steps_of(part, one, states[name]) for name, part in parts.items()}
        row: dict[str, Any] = {"tokens": tokens, "load": os.getloadavg()[0]}
        row["decode"] = {name: taken / STEPS for name, taken in in_turn(decode, rounds).items()}
        if tokens <= 16384:
            prefill = {name: steps_of(part, prompt, Kept(tokens, 0, layers[name]), 1) for name, part in parts.items()}
            row["prefill"] = in_turn(prefill, max(1, rounds // 2))
        row["bytes"] = {name: size.bytes(tokens, 4) for name, size in sizes.items()}
        found.append(row)
        said = "".join(f"{row['decode'][n] * 1e6:10.0f} us{row['bytes'][n] / 2**20:9.2f} MiB" for n in layers)
        said += "".join(f"{row['prefill'][n] / tokens * 1e6:9.1f} us" for n in layers) if "prefill" in row else ""
        print(f"{tokens:7}{said}", flush=True)
        tokens *= 4 if tokens < 4096 else 2
    return found


def main() -> None:
    given = arguments("Scans beside the step loop and beside attention.", 5, threads=2, channels=512, longest=65536)
    torch.set_num_threads(given.threads)
    print(f"{'scan':22}{'tokens':>7}{'loop':>23}{'operator':>23}{'native':>15}")
    found: dict[str, Any] = {"threads": given.threads, "channels": given.channels}
    found["scan"] = scans(given.channels, given.rounds)
    names = mixers(512)
    print(f"\n{'tokens':>7}" + "".join(f"{name + ': a token, kept':>26}" for name in names) + "  prefill, a token")
    with torch.no_grad():
        found["beside attention"] = beside_attention(512, given.longest, given.rounds)
    given.out.mkdir(parents=True, exist_ok=True)
    Path(given.out / "scan.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
