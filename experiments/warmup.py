"""Norms after each step need a warm-up; norms before it do not.

Question: can a stack be trained at full learning rate from the first step? Method: the same stack with LayerNorm
after (post, Vaswani et al. 2017) or before each residual step (pre), with and without a linear warm-up, on letters of
stories. Expected (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"): post-norm without
warm-up stays near what single letters say; with warm-up it learns; pre-norm learns either way.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from experiments.lab import Made, Results, attention, decoder, lines, means, text, train, windows
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.linear import Linear
from openbook.nn.model import LanguageModel
from openbook.train.schedules import Schedule

LENGTH = 48
STRETCH = 10  # steps of which the mean is kept


def glorot(model: LanguageModel, seed: int) -> LanguageModel:
    """Every matrix as in the paper (Glorot & Bengio 2010): ours are smaller, which hides the effect in a few layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                bound = math.sqrt(6 / sum(module.weight.shape))
                module.weight.uniform_(-bound, bound, generator=generator)
    return model


def run(quick: bool, seed: int) -> Results:
    """Training loss over steps of the four combinations."""
    steps, layers, dim = (200, 6, 48) if quick else (500, 6, 48)
    ids, vocab = text(400_000)
    norm, mlp = spec.Norm(kind="layer", bias=True), spec.MLP(hidden=4 * dim, activation="relu", gated=False)
    found: Results = {"curves": {}}
    for place in ("pre", "post"):
        for warm in (True, False):
            model = decoder(vocab, [attention(dim)] * layers, dim=dim, ffn=mlp, norm=norm, place=place, tied=False)
            schedule = Schedule(shape="constant", warmup=0.4 if warm else 0.0)
            rows = Made(windows(ids, LENGTH), seed)
            made = glorot(make(model, seed), seed)
            _, watch = train(made, rows, steps, batch=16, seed=seed, schedule=schedule, betas=(0.9, 0.98))
            found["curves"][f"{place}-norm, {'' if warm else 'no '}warm-up"] = means(watch.losses, STRETCH)
    return found


def _end(losses: list[float]) -> float:
    return sum(losses[-2:]) / 2


def claims(results: Results) -> dict[str, bool]:
    """What is left of the loss at the end."""
    ends = {name: _end(losses) for name, losses in results["curves"].items()}
    pre, post, warm = ends["pre-norm, no warm-up"], ends["post-norm, no warm-up"], ends["post-norm, warm-up"]
    return {
        f"pre-norm learns without warm-up ({pre:.2f} nats; with it {ends['pre-norm, warm-up']:.2f})": pre < 2.6,
        f"post-norm does not ({post:.2f} nats)": post > pre + 0.25,
        f"post-norm with warm-up does better ({warm:.2f})": warm < post - 0.1,
    }


def draw(results: Results, figure: Any) -> None:
    """Loss over steps."""
    curves = {name: (range(STRETCH, STRETCH * len(v) + 1, STRETCH), v) for name, v in results["curves"].items()}
    lines(
        figure.add_subplot(),
        curves,
        xlabel="step",
        ylabel="loss (nats per letter)",
        title="Six blocks at full learning rate",
    )
