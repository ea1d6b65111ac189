"""Without positions, attention does not know order.

Question: what happens to the output of an encoder when its input is permuted? Method: random encoders with no
positions, learned, sinusoidal and rotary ones, and a causal stack without positions; compare f(permuted x) with
permuted f(x). Expected: without positions the two are equal to rounding (Vaswani et al. 2017 §3.5 say why positions
are added); with any positions they are not; nor in a causal stack, whose mask tells order (Haviv et al. 2022).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from experiments.lab import Results, attention, decoder
from openbook.models.make import make
from openbook.nn import spec

DIM, LENGTH, VOCAB = 32, 20, 40


def models() -> dict[str, spec.Model]:
    """What is compared: two blocks each."""
    mlp = spec.MLP(hidden=64)
    plain = attention(DIM, rope=False, causal=False)
    return {
        "no positions": decoder(VOCAB, [plain] * 2, dim=DIM, ffn=mlp),
        "learned": decoder(VOCAB, [plain] * 2, dim=DIM, ffn=mlp, positions=spec.Learned(count=LENGTH)),
        "sinusoidal": decoder(VOCAB, [plain] * 2, dim=DIM, ffn=mlp, positions=spec.Sinusoidal()),
        "rotary": decoder(VOCAB, [attention(DIM, causal=False)] * 2, dim=DIM, ffn=mlp),
        "causal, none": decoder(VOCAB, [replace(plain, pattern=spec.Pattern(causal=True))] * 2, dim=DIM, ffn=mlp),
    }


@torch.no_grad()
def run(quick: bool, seed: int) -> Results:  # noqa: ARG001
    """The relative difference between f(permuted x) and permuted f(x), for each kind of positions."""
    torch.manual_seed(seed)
    found = {}
    for name, model_spec in models().items():
        model = make(model_spec, seed).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        ids = torch.randint(0, VOCAB, (4, LENGTH))
        order = torch.randperm(LENGTH)
        plain, moved = model.encode(ids)[:, order], model.encode(ids[:, order])
        found[name] = float((plain - moved).norm() / plain.norm())
    return {"difference": found}


def claims(results: Results) -> dict[str, bool]:
    """Equal without positions, different with any."""
    found = dict(results["difference"])
    none = found.pop("no positions")
    least = min(found.values())
    return {
        f"without positions a permutation passes through (difference {none:.0e})": none < 1e-5,
        f"positions or a causal mask tell order (least difference {least:.2f})": least > 0.02,
    }


def draw(results: Results, figure: Any) -> None:
    """Bars on a logarithmic axis."""
    axes = figure.add_subplot()
    found = {name: max(value, 1e-8) for name, value in results["difference"].items()}
    axes.barh(list(found), list(found.values()), color="#1f4e8c", height=0.55)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.set(xlabel="‖f(permuted x) − permuted f(x)‖ / ‖f(x)‖", title="Is a permutation noticed?")
