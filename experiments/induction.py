"""In-context copying needs two attention layers.

Question: a row is random letters, repeated; can a model say the second half from the first? With one layer a token can
look for its own earlier place, but not for what came after it; a second layer composes with a first that looks one back
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022). Method: attention-only
models of one and of two layers, same width; the length of the first half differs from row to row, so that looking a
fixed distance back does not help. Expected: two layers copy, one does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.lab import Made, Results, accuracy, attention, decoder, lines, train

VOCAB, LENGTH = 24, 48


def row(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random letters of a random period, over and over; what comes after the first period is to be learned."""
    period = int(torch.randint(8, 21, (), generator=generator))
    ids = torch.randint(0, VOCAB, (period,), generator=generator).repeat(-(-(LENGTH + 1) // period))[: LENGTH + 1]
    return ids, torch.arange(LENGTH + 1) > period


def run(quick: bool, seed: int) -> Results:
    """Accuracy on the repeated part while training, for one and two layers."""
    steps, dim = (700, 48) if quick else (2000, 64)
    held = Made(row, seed + 1).batch(0, 64)
    found: Results = {"steps": [], "curves": {}}
    for layers in (1, 2):
        model = decoder(VOCAB, [attention(dim)] * layers, dim=dim, tied=False)
        _, watch = train(
            model,
            Made(row, seed),
            steps,
            lr=4e-3,
            seed=seed,
            every=steps // 20,
            look=lambda m: {"accuracy": accuracy(m, held)},
        )
        found["steps"] = [seen["step"] for seen in watch.seen]
        found["curves"][f"{layers} layer{'s' * (layers > 1)}"] = [seen["accuracy"] for seen in watch.seen]
    return found


def claims(results: Results) -> dict[str, bool]:
    """Two layers copy, one does not."""
    one, two = (results["curves"][name][-1] for name in ("1 layer", "2 layers"))
    return {f"two layers copy ({two:.0%} right)": two > 0.8, f"one layer does not ({one:.0%})": one < 0.5}


def draw(results: Results, figure: Any) -> None:
    """Accuracy over steps."""
    curves = {name: (results["steps"], values) for name, values in results["curves"].items()}
    title = "Copying what was seen before, attention-only models"
    lines(figure.add_subplot(), curves, xlabel="step", ylabel="right on the repeated part", title=title, ylim=(0, 1.03))
