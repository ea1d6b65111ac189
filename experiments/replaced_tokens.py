"""Learning from every token: replaced-token detection beside masked language modelling.

Question: from the same rows, which encoder learns sooner? Method: a made-up language whose words are drawn by hidden
states that follow one another (a hidden Markov chain), each word shared by two states, so that the state behind a
word is known by its context alone; an encoder trained on hidden words (Devlin et al. 2019 §3.1) and the same encoder
trained to find the words that a small generator replaced (Clark et al. 2020), the same rows at every step; now and
then a linear probe reads the hidden state off the last layer of unseen rows. Expected (Clark et al. 2020 §3.4): the
discriminator, which learns from all tokens and not from 15% of them, is ahead at the same number of rows.
"""

from __future__ import annotations

from dataclasses import replace
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

STATES, WORDS, LENGTH = 16, 96, 32
MASK = WORDS  # the last id


class Chain:
    """Endless rows of the language: row r is a pure function of (seed, r). `states` gives what stood behind them."""

    bytes = 0

    def __init__(self, seed: int) -> None:
        rule = torch.Generator().manual_seed(12345)  # the language is the same for every seed
        self.seed = seed
        self.after = torch.stack([torch.randperm(STATES, generator=rule)[:3] for _ in range(STATES)])
        groups = torch.cat([torch.randperm(WORDS, generator=rule) for _ in range(2)])  # each word in two states
        self.said = groups.view(STATES, -1)

    def _row(self, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + number)
        pick = torch.randint(0, 3, (LENGTH,), generator=generator)
        word = torch.randint(0, self.said.shape[1], (LENGTH,), generator=generator)
        states = torch.empty(LENGTH, dtype=torch.int64)
        now = int(torch.randint(0, len(self.after), (), generator=generator))
        for place in range(LENGTH):
            now = int(self.after[now, pick[place]])
            states[place] = now
        return self.said[states, word], states

    def batch(self, start: int, rows: int) -> Batch:
        """Rows from `start` on; every word may be hidden."""
        ids = torch.stack([self._row(number)[0] for number in range(start, start + rows)])
        return Batch(ids=ids, targets={"language": ids})

    def states(self, start: int, rows: int) -> Tensor:
        """The hidden states of these rows, [rows,T]."""
        return torch.stack([self._row(number)[1] for number in range(start, start + rows)])


def encoder(dim: int, layers: int, heads: tuple[spec.Head, ...]) -> spec.Model:
    """The encoder of both; only its head differs."""
    plain = attention(dim, rope=False, causal=False)
    norm, mlp = spec.Norm(kind="layer", bias=True), spec.MLP(hidden=2 * dim, activation="gelu", gated=False)
    places = spec.Learned(count=LENGTH)
    body = decoder(WORDS + 1, [plain] * layers, dim=dim, ffn=mlp, norm=norm, context=LENGTH, positions=places)
    return replace(body, heads=heads)


@torch.no_grad()
def probe(model: LanguageModel, chain: Chain, rows: int = 192) -> float:
    """How often a linear map of the last hidden states, fitted on half of the rows, names the state of the others."""
    hidden = model.encode(chain.batch(0, rows).ids)
    states = chain.states(0, rows)
    features = F.pad(hidden, (0, 1), value=1.0).double()
    half = rows // 2
    known, asked = features[:half].flatten(0, 1), features[half:].flatten(0, 1)
    goal = F.one_hot(states[:half].flatten(), STATES).double()
    ridge = known.t() @ known + 1e-3 * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
    answer = (asked @ torch.linalg.solve(ridge, known.t() @ goal)).argmax(1)
    return float((answer == states[half:].flatten()).float().mean())


def run(quick: bool, seed: int) -> Results:
    """What the probe reads, over the number of rows learned from."""
    steps, dim, layers = (300, 48, 2) if quick else (1500, 64, 3)
    held, every = Chain(seed + 991), steps // 10
    language = spec.Language(bias=True, transform=spec.Transform(activation="gelu", norm=None))
    found: Results = {"rows": [], "right": {}, "table": 0.0}
    for name, draws in (("hidden words", False), ("replaced words", True)):
        masking = Masking(mask=MASK, vocab=WORDS, rate=0.15, random=0.0 if draws else 0.1, keep=0.0 if draws else 0.1)
        rows = MaskedRows(Chain(seed), masking, seed, draws=draws)
        if draws:
            transform = spec.Transform(activation="gelu")
            found_by = spec.Classes(count=1, over="tokens", name=HEAD, transform=transform)
            model: LanguageModel = make_pair(encoder(dim, layers, (found_by,)), 0.5, seed)
        else:
            model = make(encoder(dim, layers, (language,)), seed)
        if not found["table"]:
            found["table"] = probe(model, held)  # what words alone say, before anything is learned
        objective = ReplacedToken() if draws else None
        _, watch = train(
            model,
            rows,
            steps,
            lr=2e-3,
            seed=seed,
            objective=objective,
            every=every,
            look=lambda m: {"right": probe(m, held)},
        )
        found["rows"] = [32 * seen["step"] for seen in watch.seen]
        found["right"][name] = [seen["right"] for seen in watch.seen]
    return found


def claims(results: Results) -> dict[str, bool]:
    """Both learn; replaced words sooner."""
    hidden, replaced = results["right"]["hidden words"], results["right"]["replaced words"]
    table = results["table"]
    mean = [sum(values[1:]) / len(values[1:]) for values in (hidden, replaced)]
    return {
        f"both learn the states ({hidden[-1]:.0%} and {replaced[-1]:.0%}; words alone {table:.0%})": min(
            hidden[-1], replaced[-1]
        )
        > table + 0.05,
        f"replaced words are ahead on the way ({mean[1]:.0%} to {mean[0]:.0%} on average)": mean[1] > mean[0],
    }


def draw(results: Results, figure: Any) -> None:
    """What the probe reads, over rows."""
    axes = figure.add_subplot()
    curves = {name: (results["rows"], values) for name, values in results["right"].items()}
    lines(
        axes,
        curves,
        xlabel="rows learned from",
        ylabel="states read by a linear probe",
        title="The same rows, two ways",
    )
    axes.axhline(results["table"], color="#9ca3af", linestyle="--", linewidth=1)
