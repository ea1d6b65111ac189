"""How far back a gradient reaches.

Question: how much does the first token of a row still move the last output? Method: at initialisation, the gradient of
the last output with respect to each input vector, in a plain recurrent network, an LSTM whose forget gates start open
(Jozefowicz et al. 2015), and a residual stack of attention; and, in depth, what reaches the first of many
blocks with and without residual steps. Expected: in the plain network the gradient dies with distance (Hochreiter 1991;
Pascanu et al. 2013 §2); the LSTM's cell carries it (Hochreiter & Schmidhuber 1997); a residual stack has no distance in
time at all, and its skips carry it through any depth (He et al. 2016).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.lab import Results, attention, lines
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.linear import Linear
from openbook.nn.model import LanguageModel

DIM = 48


def through_time(mixer: spec.Layer, length: int, rows: int, seed: int) -> list[float]:
    """The norm of ∂ last output / ∂ input at each distance, as a share of that at 0 (the token itself)."""
    place: spec.Place = "plain" if isinstance(mixer, spec.Recurrent) else "pre"
    block = spec.Block(branches=(spec.Branch(layer=mixer, place=place),))
    model = make(
        spec.Model(embed=spec.Embed(vocab=64, dim=DIM), stack=spec.Stack(dim=DIM, blocks=(block,)), heads=()), seed
    )
    with torch.no_grad():
        model.embed.tokens.weight.normal_(0, 1)
    inputs: list[Tensor] = []

    def keep(_module: Any, _given: Any, out: Tensor) -> Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1]

    model.embed.register_forward_hook(keep)
    out = model.hidden(torch.randint(0, 64, (rows, length)))[:, -1]
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad((out * probe).sum(), inputs[-1])  # [rows,T,D]
    norms = gradient.norm(dim=2).mean(0).flip(0)
    return (norms / norms[0]).tolist()


def through_depth(residual: bool, depth: int, rows: int, seed: int) -> list[float]:
    """The norm of the gradient at the input of each block, counted from the last, as a share of the last one's."""
    mlp = spec.MLP(hidden=DIM, activation="tanh", gated=False)
    place: spec.Place = "pre" if residual else "plain"
    branch = spec.Branch(layer=mlp, place=place)
    block = spec.Block(branches=(branch,))
    model = make(
        spec.Model(embed=spec.Embed(vocab=64, dim=DIM), stack=spec.Stack(dim=DIM, blocks=(block,) * depth), heads=())
    )
    _spread(model, seed)
    kept: list[Tensor] = []

    def keep(_module: Any, given: tuple[Any, ...]) -> None:
        given[0].retain_grad()
        kept.append(given[0])

    for one in model.stack.blocks:
        one.register_forward_pre_hook(keep)
    out = model.hidden(torch.randint(0, 64, (rows, 4)))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
    norms = [float(x.grad.norm()) for x in reversed(kept) if x.grad is not None]
    return [norm / norms[0] for norm in norms]


def _spread(model: LanguageModel, seed: int) -> None:
    """Matrices that keep the size of what they multiply, which is where the comparison is fair."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.embed.tokens.weight.normal_(0, 1, generator=generator)
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight.normal_(0, 0.8 * module.weight.shape[1] ** -0.5, generator=generator)


def run(quick: bool, seed: int) -> Results:
    """Gradients by distance in time and in depth."""
    torch.manual_seed(seed)
    length, depth, rows = (60, 24, 8) if quick else (120, 48, 64)
    kinds: dict[str, spec.Layer] = {
        "plain recurrent network": spec.Recurrent(cell="rnn", hidden=DIM),
        "LSTM": spec.Recurrent(cell="lstm", hidden=DIM),
        "residual attention": attention(DIM),
    }
    return {
        "time": {name: through_time(mixer, length, rows, seed) for name, mixer in kinds.items()},
        "depth": {
            "without residual steps": through_depth(False, depth, rows, seed),
            "with residual steps": through_depth(True, depth, rows, seed),
        },
    }


def claims(results: Results) -> dict[str, bool]:
    """What is left at the far end."""
    plain, lstm, attending = (values[-1] / values[1] for values in results["time"].values())
    bare, residual = (values[-1] for values in results["depth"].values())
    distance = len(next(iter(results["time"].values()))) - 1
    return {
        f"the plain network forgets ({plain:.0e} at {distance} tokens)": plain < 1e-4,
        f"the LSTM carries it further ({lstm:.0e})": lstm > 100 * plain,
        f"attention has no distance ({attending:.1f} of what the token before gets)": attending > 0.1,
        f"in depth: {bare:.0e} without residual steps, {residual:.1f} with": bare < 1e-2 and residual > 0.5,
    }


def draw(results: Results, figure: Any) -> None:
    """Time on the left, depth on the right."""
    left, right = figure.subplots(1, 2)
    for axes, key, label in ((left, "time", "tokens back"), (right, "depth", "blocks back")):
        curves = {n: (range(len(v)), [max(x, 1e-30) for x in v]) for n, v in results[key].items()}
        lines(axes, curves, xlabel=label, ylabel="gradient, as a share of the nearest")
        axes.set_yscale("log")
    figure.suptitle("What reaches back, at initialisation")
