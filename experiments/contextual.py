"""One word, two meanings: the vector of an ambiguous word depends on its context.

Question: is the word "bank" the same vector beside a river and beside money? Method: a small masked-language encoder
trained on sentences made from two worlds that share the word and nothing else of content; then the vectors of "bank"
in new sentences, at the embedding and after each block. Expected: one vector in the table; after attention the two
meanings are apart, so that a nearest-centroid rule tells them (Peters et al. 2018 §5; Ethayarajh 2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.lab import COLOURS, IGNORE, Results, attention, decoder, train
from openbook.data.batch import Batch
from openbook.nn import spec
from openbook.nn.model import LanguageModel

WORLDS = (
    (
        ["the boat", "a fisher", "the old heron", "the otter", "a child", "the ferry"],
        ["rested by", "drifted to", "walked along", "waited at", "swam to", "slept near"],
        ["where the reeds grew", "as the water rose", "under the willow", "in the morning mist", "beside the stream"],
    ),
    (
        ["the clerk", "a lawyer", "the young widow", "the merchant", "a thief", "the company"],
        ["borrowed from", "paid money to", "signed papers at", "took a loan from", "kept gold in", "wrote to"],
        [
            "before the debt was due",
            "with a high interest",
            "for the new account",
            "to buy a house",
            "and got a receipt",
        ],
    ),
)
WORDS = sorted({w for world in WORLDS for part in world for phrase in part for w in phrase.split()} | {"the", "bank"})
NUMBER = {word: place for place, word in enumerate(["[mask]", "[pad]", *WORDS])}
LENGTH = 14


def sentence(world: int, generator: torch.Generator) -> list[int]:
    """Somebody did something to the bank, and when."""
    who, what, how = (p[int(torch.randint(0, len(p), (), generator=generator))] for p in WORLDS[world])
    return [NUMBER[word] for word in f"{who} {what} the bank {how}".split()][:LENGTH]


class Masked:
    """Endless masked-language rows: 15% of the words hidden, one at least."""

    bytes = 0

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch(self, start: int, rows: int) -> Batch:
        """Rows from `start` on."""
        ids = torch.full((rows, LENGTH), NUMBER["[pad]"])
        segments, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        for place in range(rows):
            generator = torch.Generator().manual_seed(self.seed * 10_000_019 + start + place)
            words = torch.tensor(sentence(int(torch.randint(0, 2, (), generator=generator)), generator))
            hide = torch.rand(len(words), generator=generator) < 0.15
            hide[int(torch.randint(0, len(words), (), generator=generator))] = True
            ids[place, : len(words)] = torch.where(hide, NUMBER["[mask]"], words)
            targets[place, : len(words)] = torch.where(hide, words, IGNORE)
            segments[place, : len(words)] = 1
        return Batch(ids=ids, segments=segments, targets={"language": targets})


@torch.no_grad()
def vectors(model: LanguageModel, count: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Of "bank" in new sentences: after the embedding and after each block [count,D] each; and which world it was."""
    generator = torch.Generator().manual_seed(seed + 77)
    world = torch.arange(count) % 2
    rows = [sentence(int(w), generator) for w in world]
    kept: list[list[Tensor]] = [[] for _ in range(len(model.stack.blocks) + 1)]
    now: list[Tensor] = []
    hooks = [model.stack.blocks[0].register_forward_pre_hook(lambda _m, given: now.append(given[0]))]
    hooks += [block.register_forward_hook(lambda _m, _given, out: now.append(out)) for block in model.stack.blocks]
    for row in rows:
        now.clear()
        model.encode(torch.tensor([row]))
        for layer, out in zip(kept, now, strict=True):
            layer.append(out[0, row.index(NUMBER["bank"])])
    for hook in hooks:
        hook.remove()
    return [torch.stack(layer) for layer in kept], world


def told_apart(found: Tensor, world: Tensor) -> float:
    """The share of the second half that is nearer to the centroid of its own meaning in the first half."""
    half = len(found) // 2
    centres = torch.stack([found[:half][world[:half] == w].mean(0) for w in (0, 1)])
    nearest = torch.cdist(found[half:], centres)
    # Where both are equally near, nothing is told: half a point.
    right = (nearest.argmin(1) == world[half:]).float()
    same = (nearest[:, 0] - nearest[:, 1]).abs() < 1e-4 * nearest.mean().clamp(min=1e-6)
    return float(torch.where(same, 0.5, right).mean())


def run(quick: bool, seed: int) -> Results:
    """Accuracy of telling the meanings apart by layer, and the last layer's vectors in their two main directions."""
    steps, dim, layers = (150, 32, 2) if quick else (600, 48, 3)
    plain = attention(dim, rope=False, causal=False)
    model_spec = decoder(
        len(NUMBER), [plain] * layers, dim=dim, ffn=spec.MLP(hidden=3 * dim), positions=spec.Learned(count=LENGTH)
    )
    model, _ = train(model_spec, Masked(seed), steps, batch=32, seed=seed)
    layers_found, world = vectors(model, 120, seed)
    table = model.embed.tokens.weight[NUMBER["bank"]].detach().expand(120, -1)
    right = [told_apart(found, world) for found in (table, *layers_found)]
    last = layers_found[-1] - layers_found[-1].mean(0)
    main = torch.linalg.svd(last, full_matrices=False).Vh[:2]
    return {
        "layers": ["table", "with positions", *(f"block {n + 1}" for n in range(layers))],
        "right": right,
        "places": (last @ main.t()).tolist(),
        "world": world.tolist(),
    }


def claims(results: Results) -> dict[str, bool]:
    """The table cannot tell, the last block can."""
    first, last = results["right"][0], results["right"][-1]
    return {
        f"the table has one vector for both meanings ({first:.0%} told apart)": first <= 0.5,
        f"after the last block the meanings are apart ({last:.0%})": last > 0.95,
    }


def draw(results: Results, figure: Any) -> None:
    """Accuracy by layer; the vectors of the last block."""
    left, right = figure.subplots(1, 2)
    left.bar(results["layers"], results["right"], color=COLOURS[0], width=0.6)
    left.axhline(0.5, color="#9ca3af", linestyle="--", linewidth=1)
    left.tick_params(axis="x", rotation=25)
    left.set(ylabel="meanings told apart", ylim=(0, 1.03), title="by layer")
    for world, name in enumerate(("beside a river", "beside money")):
        points = [p for p, w in zip(results["places"], results["world"], strict=True) if w == world]
        right.scatter(*zip(*points, strict=True), s=14, color=COLOURS[world], label=name)
    right.set(title="vectors of “bank”, last block", xticks=[], yticks=[])
    right.legend(frameon=False)
