"""Associative recall: attention looks things up, a fixed state must have kept them.

Question: a row lists pairs of a key and its value, then asks for some keys again; how many pairs can a model of a given
width answer for? Method: multi-query associative recall (Arora et al. 2023, "Zoology"; Graves et al. 2014 before them)
with two layers each of attention, of a selective state space (Gu & Dao 2023) and of LSTM, same width, trained on rows
with up to the full number of pairs and asked with few and with many. Expected: attention answers for all; the state
space and the LSTM, whose states do not grow, do worse the more pairs there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.lab import IGNORE, Results, accuracy, attention, decoder, lines, train
from openbook.data.batch import Batch
from openbook.nn import spec

KEYS, VALUES = 64, 16


class Recall:
    """Endless rows: `most` places of pairs, then as many questions.

    A token of a pair carries its key and its value (as its type); a question is a key alone (type 0), and its answer is
    to be learned. `pairs`: how many; else any number.
    """

    bytes = 0

    def __init__(self, most: int, seed: int, pairs: int | None = None) -> None:
        self.most, self.seed, self.pairs = most, seed, pairs

    def batch(self, start: int, rows: int) -> Batch:
        """Rows from `start` on."""
        parts = [
            self._row(torch.Generator().manual_seed(self.seed * 10_000_019 + n)) for n in range(start, start + rows)
        ]
        ids, types, targets = (torch.stack(column) for column in zip(*parts, strict=True))
        return Batch(ids=ids, types=types, targets={"language": targets})

    def _row(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        count = int(torch.randint(2, self.most + 1, (), generator=generator)) if self.pairs is None else self.pairs
        keys = torch.randperm(KEYS, generator=generator)[:count]
        values = torch.randint(0, VALUES, (count,), generator=generator)
        again = -(-self.most // count)
        asked = torch.cat([torch.randperm(count, generator=generator) for _ in range(again)])[: self.most]
        listed = torch.arange(self.most) % count  # few pairs are told more than once
        ids = torch.cat([keys[listed], keys[asked]])
        types = torch.cat([values[listed] + 1, torch.zeros_like(asked)])
        return ids, types, torch.cat([torch.full_like(listed, IGNORE), values[asked]])


def mixers(dim: int) -> dict[str, spec.Layer]:
    """One layer of each kind, of about the same width."""
    return {
        "attention": attention(dim),
        "selective state space": spec.Selective(inner=2 * dim, state=16, rank=max(dim // 16, 1)),
        "LSTM": spec.Recurrent(cell="lstm", hidden=dim),
    }


def run(quick: bool, seed: int) -> Results:
    """The share of right answers for each kind and number of pairs."""
    steps, dim, most = (300, 32, 16) if quick else (1200, 48, 32)
    asked = [count for count in (2, 4, 8, 12, 16, 24, 32, 48) if count <= most]
    found: Results = {"pairs": asked, "right": {}}
    for name, mixer in mixers(dim).items():
        model_spec = decoder(KEYS, [mixer] * 2, dim=dim, ffn=spec.MLP(hidden=2 * dim), tied=False, types=VALUES + 1)
        model, _ = train(model_spec, Recall(most, seed), steps, lr=4e-3, seed=seed)
        found["right"][name] = [accuracy(model, Recall(most, seed + 1, n).batch(0, 64)) for n in asked]
    return found


def claims(results: Results) -> dict[str, bool]:
    """Attention answers for the most pairs; the others do worse."""
    last = {name: values[-1] for name, values in results["right"].items()}
    best_of_rest = max(last["selective state space"], last["LSTM"])
    return {
        f"attention answers for {results['pairs'][-1]} pairs ({last['attention']:.0%})": last["attention"] > 0.85,
        f"the LSTM does worse ({last['LSTM']:.0%})": last["LSTM"] < last["attention"] - 0.2,
        f"a fixed state is behind attention (best {best_of_rest:.0%})": best_of_rest < last["attention"] - 0.02,
    }


def draw(results: Results, figure: Any) -> None:
    """Right answers over the number of pairs."""
    curves = {name: (results["pairs"], values) for name, values in results["right"].items()}
    title = "Associative recall, two layers of the same width"
    lines(figure.add_subplot(), curves, xlabel="pairs", ylabel="right answers", title=title, ylim=(0, 1.03))
