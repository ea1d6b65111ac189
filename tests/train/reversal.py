"""A tiny task for a pair of recurrent networks: write a string of eight symbols backwards."""

from __future__ import annotations

import torch

from openbook.data.batch import Batch
from openbook.generate.loop import generate_ids
from openbook.generate.sampling import Sampling
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.train.head_loss import IGNORE

BEGIN, END, FIRST, SYMBOLS, LENGTH = 1, 2, 3, 8, 8


class Reversal:
    """Rows r, each a pure function of r: the source, and the target with its end. Lengths differ where `ragged`."""

    def __init__(self, seed: int = 0, ragged: bool = False) -> None:
        self.seed, self.ragged = seed, ragged

    def source(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + number)
        length = int(torch.randint(3, LENGTH + 1, (), generator=generator)) if self.ragged else LENGTH
        return torch.randint(FIRST, FIRST + SYMBOLS, (length,), generator=generator).tolist()

    def batch(self, start: int, rows: int) -> Batch:
        sources = [self.source(number) for number in range(start, start + rows)]
        ids = torch.zeros(rows, LENGTH + 1, dtype=torch.int64)
        source = torch.zeros(rows, LENGTH, dtype=torch.int64)
        segments, source_segments, targets = ids.clone(), source.clone(), torch.full_like(ids, IGNORE)
        for row, one in enumerate(sources):
            back, n = one[::-1], len(one)
            source[row, :n], source_segments[row, :n] = torch.tensor(one), 1
            ids[row, : n + 1], segments[row, : n + 1] = torch.tensor([BEGIN, *back]), 1
            targets[row, : n + 1] = torch.tensor([*back, END])
        if not self.ragged:
            return Batch(ids=ids, source=source, targets={"language": targets})
        return Batch(
            ids=ids, segments=segments, source=source, source_segments=source_segments, targets={"language": targets}
        )


def small(look: str = "fed", hidden: int = 48) -> spec.Model:
    """An encoder both ways and a decoder with attention."""
    before = look == "before"
    reader = spec.Recurrent(cell="gru", hidden=hidden // 2, direction="both")
    layer = spec.Attentive(
        cell="gru" if before else "lstm",
        hidden=hidden,
        look=look,  # type: ignore[arg-type]
        score="additive",
        start="first" if before else "last",
        readout="maxout" if before else "tanh",
    )
    encoder, decoder = (
        spec.Stack(dim=hidden, blocks=(spec.Block(branches=(spec.Branch(layer=one, place="plain"),)),))
        for one in (reader, layer)
    )
    embed = spec.Embed(vocab=FIRST + SYMBOLS, dim=hidden)
    return spec.Model(
        embed=embed,
        stack=decoder,
        heads=(spec.Language(tied=False, bias=True),),
        source=spec.Encoder(stack=encoder, embed=embed),
    )


def right(model: LanguageModel, count: int, **sampling: int) -> float:
    """The share of rows nobody trained on that are written backwards exactly."""
    task = Reversal(seed=77)
    sources = [task.source(number) for number in range(count)]
    drawing = Sampling(max_tokens=LENGTH + 2, temperature=0.0, **sampling)
    found = generate_ids(model, sources, drawing, start=(BEGIN,), eos=(END,))
    hits = [[*one[::-1], END] == said.ids for one, said in zip(sources, found, strict=True)]
    return sum(hits) / count
