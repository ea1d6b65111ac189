"""Learning from every token, or from the hidden ones: replaced-token detection and masked language modelling.

Question: from the same rows, which encoder learns sooner? Method: a made-up language: words of eight classes, and a
row goes around the classes with a stride of its own; nothing but the order of words tells the stride. One encoder
learns to say hidden words (Devlin et al. 2019 §3.1), one to find words that a small generator put in their place
(Clark et al. 2020), one the same from the hidden places alone ("ELECTRA 15%", §3.4); the same rows at every step. Now
and then a linear probe reads the stride off the mean of the last layer, of rows that were never seen. Expected
(§3.4): to learn from all tokens is worth much. That detection is also ahead of saying hidden words is what the paper
finds at its scale; a language of 32 words is not that: here one answer among 32 words tells more than a yes or no,
and the curves say by how much.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.lab import Results, attention, decoder, lines, train
from openbook.data.batch import Batch
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.train.masked import MaskedRows
from openbook.train.objectives import Masking
from openbook.train.replaced import HEAD, ReplacedToken, make_pair

CLASSES, EACH, LENGTH = 8, 4, 24
WORDS = CLASSES * EACH
MASK = WORDS  # the last id
STRIDES = tuple(range(1, CLASSES, 2))  # with each a row goes through all classes


class Rounds:
    """Endless rows of the language: row r is a pure function of (seed, r). `strides` says what told it apart."""

    bytes = 0

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _row(self, number: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + number)
        kind = int(torch.randint(0, len(STRIDES), (), generator=generator))
        start = int(torch.randint(0, CLASSES, (), generator=generator))
        classes = (start + STRIDES[kind] * torch.arange(LENGTH)) % CLASSES
        return classes * EACH + torch.randint(0, EACH, (LENGTH,), generator=generator), kind

    def batch(self, start: int, rows: int) -> Batch:
        """Rows from `start` on; every word may be hidden."""
        ids = torch.stack([self._row(number)[0] for number in range(start, start + rows)])
        return Batch(ids=ids, targets={"language": ids})

    def strides(self, start: int, rows: int) -> Tensor:
        """Which stride each of these rows has."""
        return torch.tensor([self._row(number)[1] for number in range(start, start + rows)])


def encoder(dim: int, layers: int, heads: tuple[spec.Head, ...]) -> spec.Model:
    """The encoder of both; only its head differs."""
    norm, mlp = spec.Norm(kind="layer", bias=True), spec.MLP(hidden=2 * dim, activation="gelu", gated=False)
    mixers = [attention(dim, causal=False)] * layers
    return replace(decoder(WORDS + 1, mixers, dim=dim, ffn=mlp, norm=norm, context=LENGTH), heads=heads)


@torch.no_grad()
def probe(model: LanguageModel, held: Rounds, rows: int = 256) -> float:
    """How often a linear map of a row's mean vector, fitted on half of the rows, names the stride of the others."""
    hidden = model.encode(held.batch(0, rows).ids).mean(1)
    strides = held.strides(0, rows)
    features = F.pad(hidden, (0, 1), value=1.0).double()
    known, asked = features[: rows // 2], features[rows // 2 :]
    goal = F.one_hot(strides[: rows // 2], len(STRIDES)).double()
    ridge = known.t() @ known + 1e-2 * torch.eye(known.shape[1], dtype=torch.float64)
    answer = (asked @ torch.linalg.solve(ridge, known.t() @ goal)).argmax(1)
    return float((answer == strides[rows // 2 :]).float().mean())


WAYS = ("hidden words", "replaced words, from all", "replaced words, from the hidden")


def run(quick: bool, seed: int) -> Results:
    """What the probe reads, over the number of rows learned from."""
    steps, dim, layers = (800, 48, 2) if quick else (1500, 48, 2)
    held, every = Rounds(seed + 991), steps // 15
    language = spec.Language(bias=True, transform=spec.Transform(activation="gelu"))
    found: Results = {"rows": [], "right": {}}
    for way in WAYS:
        draws = way != WAYS[0]
        masking = Masking(mask=MASK, vocab=WORDS, rate=0.15, random=0.0 if draws else 0.1, keep=0.0 if draws else 0.1)
        rows = MaskedRows(Rounds(seed), masking, seed, draws=draws)
        if draws:
            detector = spec.Classes(count=1, over="tokens", name=HEAD, transform=spec.Transform(activation="gelu"))
            model: LanguageModel = make_pair(encoder(dim, layers, (detector,)), 0.5, seed)
        else:
            model = make(encoder(dim, layers, (language,)), seed)
        objective = ReplacedToken(weight=5.0, hidden_only=way == WAYS[2]) if draws else None
        look = partial(_look, held=held)
        _, watch = train(model, rows, steps, seed=seed, objective=objective, every=every, look=look)
        found["rows"] = [32 * seen["step"] for seen in watch.seen]
        found["right"][way] = [seen["right"] for seen in watch.seen]
    return found


def _look(model: LanguageModel, held: Rounds) -> dict[str, float]:
    return {"right": probe(model, held)}


def claims(results: Results) -> dict[str, bool]:
    """What learning from all tokens is worth."""
    mean = {way: sum(values) / len(values) for way, values in results["right"].items()}
    said, every, some = (mean[way] for way in WAYS)
    last = {way: values[-1] for way, values in results["right"].items()}
    end = last[WAYS[1]]
    return {
        f"detection learns the stride from all tokens ({end:.0%} at the end; guessing 25%)": end > 0.6,
        f"and is ahead of detection from the hidden ones ({every:.0%} to {some:.0%} on average)": every > some + 0.05,
        f"saying hidden words also learns it ({said:.0%} on average)": last[WAYS[0]] > 0.6,
    }


def draw(results: Results, figure: Any) -> None:
    """What the probe reads, over rows."""
    axes = figure.add_subplot()
    curves = {name: (results["rows"], values) for name, values in results["right"].items()}
    title = "The same rows, three ways to learn from them"
    lines(axes, curves, xlabel="rows learned from", ylabel="strides that a linear probe reads", title=title)
    axes.axhline(1 / len(STRIDES), color="#9ca3af", linestyle="--", linewidth=1)
