"""Small recurrent models as specs, with random weights, for the tests and laws that run on them."""

from __future__ import annotations

from typing import Any

import torch

from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel

VOCAB, DIM = 67, 18


def language(layer: spec.Recurrent, layers: int = 2, tied: bool = True, dim: int = DIM) -> spec.Model:
    """An LM of recurrent layers one on the other."""
    block = spec.Block(branches=(spec.Branch(layer=layer, place="plain"),))
    return spec.Model(
        embed=spec.Embed(vocab=VOCAB, dim=dim),
        stack=spec.Stack(dim=dim, blocks=(block,) * layers),
        heads=(spec.Language(tied=tied, bias=True),),
    )


def pair(layer: spec.Attentive, *, dim: int = DIM, both: bool = True, cell: spec.Cell = "gru") -> spec.Model:
    """An encoder of two layers, the last of them both ways, and a decoder that looks at it."""
    reader = spec.Recurrent(
        cell=cell, hidden=DIM // 2 if both else DIM, direction="both" if both else "forward", bias=True
    )
    block = spec.Block(branches=(spec.Branch(layer=reader, place="plain"),))
    return spec.Model(
        embed=spec.Embed(vocab=VOCAB, dim=dim),
        stack=spec.Stack(dim=dim, blocks=(spec.Block(branches=(spec.Branch(layer=layer, place="plain"),)),)),
        heads=(spec.Language(tied=False, bias=True),),
        source=spec.Encoder(embed=spec.Embed(vocab=VOCAB, dim=DIM), stack=spec.Stack(dim=DIM, blocks=(block,) * 2)),
    )


def bilm(cell: spec.Cell = "lstm", layers: int = 2, projection: int | None = DIM, **head: Any) -> spec.Model:
    """A language model each way that share embedding and head, with residual upper layers, and a mix of all layers."""
    layer = spec.Recurrent(cell=cell, hidden=DIM + 5, projection=projection, direction="apart")
    blocks = [
        spec.Block(branches=(spec.Branch(layer=layer, place="pre" if number else "plain"),)) for number in range(layers)
    ]
    return spec.Model(
        embed=spec.Embed(vocab=VOCAB, dim=DIM, copies=2),
        stack=spec.Stack(dim=2 * DIM, blocks=tuple(blocks)),
        heads=(spec.Language(tied=False, directions=2), spec.Mix(), *head.get("more", ())),
    )


LANGUAGE = {
    "rnn": language(spec.Recurrent(cell="rnn", hidden=DIM)),
    "lstm": language(spec.Recurrent(hidden=DIM)),
    "lstm-projected": language(spec.Recurrent(hidden=DIM + 7, projection=DIM, bias=False), tied=False),
    "gru": language(spec.Recurrent(cell="gru", hidden=DIM)),
}
PAIRS = {
    "bahdanau": pair(
        spec.Attentive(cell="gru", hidden=DIM + 3, look="before", score="additive", start="first", readout="maxout")
    ),
    "bahdanau-state": pair(
        spec.Attentive(hidden=DIM, look="before", score="general", start="ends", readout="state", layers=2)
    ),
    "luong-dot": pair(spec.Attentive(cell="lstm", hidden=DIM, score="dot"), both=False, cell="lstm"),
    "luong-general-fed": pair(
        spec.Attentive(cell="lstm", hidden=DIM + 5, look="fed", score="general", start="last", layers=2), cell="lstm"
    ),
    "luong-concat": pair(
        spec.Attentive(cell="rnn", hidden=DIM + 1, score="additive", align=7, start="zeros", bias=False), cell="rnn"
    ),
}
ALL = LANGUAGE | PAIRS


def random(model: spec.Model, seed: int = 0, spread: float = 0.4) -> LanguageModel:
    """A model of a spec, its numbers such that every part shows."""
    built = build(model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, spread, generator=generator)
    return built


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """Random ids [rows,count]."""
    return torch.randint(3, VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))
