"""Rows longer than those of training: which positions hold?

Question: what does a token cost at places that training never showed? Method: the same small decoder with sinusoidal,
learned, rotary and ALiBi positions and with none, trained on rows of 64 letters of stories, read on rows eight times
as long; and the rotary one stretched by YaRN without more training. Expected (Press et al. 2022; Peng et al. 2023):
learned positions end where training ended; sinusoidal and rotary positions break beyond it; YaRN holds the rotary
model up; ALiBi goes on as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from experiments.lab import Made, Results, attention, decoder, lines, text, train, windows
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel

TRAINED, TIMES, HEADS = 64, 8, 4


def models(vocab: int, dim: int, layers: int) -> dict[str, spec.Model]:
    """What is compared; only the positions differ."""
    mlp = spec.MLP(hidden=3 * dim)
    plain = [attention(dim, HEADS, rope=False)] * layers
    alibi = decoder(vocab, [replace(plain[0], relative=True)] * layers, dim=dim, ffn=mlp)
    return {
        "sinusoidal": decoder(vocab, plain, dim=dim, ffn=mlp, positions=spec.Sinusoidal(), scale=dim**0.5),
        "learned": decoder(vocab, plain, dim=dim, ffn=mlp, positions=spec.Learned(count=TRAINED)),
        "rotary": decoder(vocab, [attention(dim, HEADS)] * layers, dim=dim, ffn=mlp),
        "ALiBi": replace(alibi, stack=replace(alibi.stack, relative=spec.Alibi(heads=HEADS))),
        "none": decoder(vocab, plain, dim=dim, ffn=mlp),
    }


def stretched(model: LanguageModel) -> LanguageModel:
    """The same weights, the rotation stretched to the length they are read at."""
    size = model.spec.stack.dim // HEADS
    yarn = spec.YarnScaling(factor=float(TIMES), original=TRAINED, attention=1.2079)
    rope = spec.Rope(dim=size, scaling=yarn)
    blocks = tuple(
        replace(
            block,
            branches=tuple(
                replace(b, layer=replace(b.layer, rope=rope)) if isinstance(b.layer, spec.Attention) else b
                for b in block.branches
            ),
        )
        for block in model.spec.stack.blocks
    )
    longer = build(replace(model.spec, stack=replace(model.spec.stack, blocks=blocks))).eval()
    longer.load_state_dict(model.state_dict())
    return longer


@torch.no_grad()
def by_place(model: LanguageModel, rows: torch.Tensor) -> list[float]:
    """Loss in nats, averaged over the rows and over each stretch of 32 places; as far as there are positions."""
    room = model.spec.embed.room
    rows = rows if room is None else rows[:, : room + 1]
    logits = model(rows[:, :-1])
    loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)
    return [float(part.mean()) for part in loss.split(32)]


def run(quick: bool, seed: int) -> Results:
    """Loss by place for each kind of positions."""
    steps, dim, layers = (250, 48, 2) if quick else (1000, 64, 3)
    ids, vocab = text(400_000)
    held = ids[-60_000:]
    row = windows(held, TRAINED * TIMES)
    rows = torch.stack([row(torch.Generator().manual_seed(n))[0] for n in range(24 if quick else 64)])
    found: Results = {"trained": TRAINED, "loss": {}}
    for name, model_spec in models(vocab, dim, layers).items():
        model, _ = train(model_spec, Made(windows(ids[:-60_000], TRAINED), seed), steps, batch=32, seed=seed)
        found["loss"][name] = by_place(model, rows)
        if name == "rotary":
            found["loss"]["rotary + YaRN"] = by_place(stretched(model), rows)
    return found


def claims(results: Results) -> dict[str, bool]:
    """The last stretch beside the last one inside the trained length."""
    edge = TRAINED // 32 - 1
    rise = {name: values[-1] - values[edge] for name, values in results["loss"].items()}
    return {
        f"ALiBi holds (loss changes by {rise['ALiBi']:+.2f})": rise["ALiBi"] < 0.1,
        f"sinusoidal breaks ({rise['sinusoidal']:+.2f})": rise["sinusoidal"] > 0.2,
        f"rotary breaks ({rise['rotary']:+.2f})": rise["rotary"] > 0.1,
        f"YaRN holds the rotary model up ({rise['rotary + YaRN']:+.2f})": rise["rotary + YaRN"] < rise["rotary"] - 0.05,
        "learned positions end": len(results["loss"]["learned"]) == TRAINED // 32,
    }


def draw(results: Results, figure: Any) -> None:
    """Loss over the place."""
    axes = figure.add_subplot()
    curves = {n: ([32 * i + 16 for i in range(len(v))], v) for n, v in results["loss"].items()}
    lines(
        axes, curves, xlabel="place in the row", ylabel="loss (nats per letter)", title="Read beyond what was trained"
    )
    axes.axvline(results["trained"], color="#9ca3af", linestyle="--", linewidth=1)
