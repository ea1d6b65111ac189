"""What int8 costs in quality: perplexity beside bf16, as planned, without the plan, and with one scale for a matrix.

    python bench/quality.py [--run runs/stories] [--tokens 20000] [--outliers 50] [--out runs/bench]

DIR is a finished run of `openbook pretrain`: its held-out text is what is measured. With --outliers F the same is done
once more on a copy of the model in which a few channels of every norm, and of every feed-forward layer, are F times as
large, and the matrices after them as much smaller: the same function, as hard to quantise as large models are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _harness import arguments, machine
from openbook.data.heldout import HeldOut
from openbook.data.shards import Shards
from openbook.models.load import load
from openbook.nn.attention import SelfAttention
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.serving import serve_form
from openbook.quant.int8 import measure
from openbook.train.heldout import perplexity


class PerTensor(Linear):
    """The coarse baseline: one scale for the matrix, and one for all rows together."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x), rounded(self.weight), self.bias)


def rounded(x: Tensor) -> Tensor:
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


@torch.no_grad()
def with_outliers(model: LanguageModel, factor: float, channels: int = 4) -> LanguageModel:
    """The same function with a few large channels before every matrix."""
    chance = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
    for block in model.stack.blocks:
        for branch in block.branches:
            assert branch.norm is not None
            chosen = torch.randperm(len(branch.norm.weight), generator=chance)[:channels]
            branch.norm.weight[chosen] *= factor
            layer = branch.layer
            if isinstance(layer, SelfAttention):
                parts = [layer.q, layer.k, layer.v]
            else:
                assert isinstance(layer, FeedForward)
                parts = [layer.up] + ([layer.gate] if layer.gate is not None else [])
                hidden = torch.randperm(len(layer.up.weight), generator=chance)[:channels]
                layer.up.weight[hidden] *= factor
                layer.down.weight[:, hidden] /= factor
            for part in parts:
                part.weight[:, chosen] /= factor
    return model


def per_tensor(model: LanguageModel) -> LanguageModel:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if type(child) is Linear:
                coarse = PerTensor(0, 0)
                coarse.weight, coarse.bias = child.weight, child.bias
                module._modules[name] = coarse
    return model


def case(folder: Path, held: HeldOut, tokenizer: str, factor: float) -> dict[str, Any]:
    """Perplexity of each form, per token and per byte, and the change against bf16 in percent, per token."""

    def fresh() -> LanguageModel:
        model = load(folder, dtype="float32")
        return with_outliers(model, factor) if factor else model

    plan = measure(fresh())
    forms = {
        "bf16": lambda: serve_form(fresh(), "bf16"),
        "int8 planned": lambda: serve_form(fresh(), "int8", plan.choices),
        "int8 unplanned": lambda: serve_form(fresh(), "int8"),
        "int8 per tensor": lambda: per_tensor(fresh()),
    }
    measured = {name: perplexity(make(), held, tokenizer) for name, make in forms.items()}
    found: dict[str, Any] = {
        name: {
            "loss": one.nats / one.tokens,
            **one.plain(),
            "change %": round(100 * (one.over(measured["bf16"], per="token") - 1), 4),
        }
        for name, one in measured.items()
    }
    return {"results": found, "plan": plan.lines()}


def main() -> None:
    config = arguments(str(__doc__), run="runs/stories", tokens=20000, outliers=50.0)
    if not (Path(config.run) / "text").is_dir():
        print(f"`{config.run}` is no run of `openbook pretrain`: give one with --run DIR, or `make run` first.")
        raise SystemExit(0)  # `openbook bench all` goes on
    folder = Path(config.run)
    shards = Shards.open(folder / "text")
    held = HeldOut(shards, block=256, rows=8, limit=config.tokens)
    cases = {"as trained": case(folder, held, shards.tokenizer, 0.0)}
    if config.outliers:
        cases[f"outliers × {config.outliers:g}"] = case(folder, held, shards.tokenizer, config.outliers)
    for name, one in cases.items():
        print(f"\n{name}: {one['plan'][0]}")
        for form, result in one["results"].items():
            both = f"{result['perplexity_per_token']:.4f} per token, {result['perplexity_per_byte']:.4f} per byte"
            print(f"  {form:<16} perplexity {both}  {result['change %']:+.3f}%")
    config.out.mkdir(parents=True, exist_ok=True)
    kept = {"title": "Perplexity of int8", "tokens": held.tokens, "machine": machine(), "cases": cases}
    (config.out / "quality.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"  kept in {config.out / 'quality.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
