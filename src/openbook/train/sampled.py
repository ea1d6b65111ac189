"""Scheduled sampling (Bengio et al. 2015): while training, a decoder reads more and more of its own words.

    rows = ScheduledRows(rows, Teacher(shape="inverse-sigmoid", k=200.0), seed=0, step=32)
    objective = Scheduled(Language())

Each input of a row is the true token with the teacher's chance ε and else one drawn from what the model says after the
inputs so far (§2.4). What is decided and drawn is a pure function of (seed, row), and ε of the row's step, so that a
batch cut anyhow reads the same (law 5). The words are drawn first, one token after another through a cache and without
dropout; then the row so written is learned from at once. No gradient goes through a draw, as in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from openbook.data.batch import Batch
from openbook.errors import ConfigError, DataError
from openbook.generate.cache import Contiguous
from openbook.nn.model import LanguageModel
from openbook.train.objectives import Language, Term
from openbook.train.step import Rows

OWN, DRAW = "own", "draw"  # names among a batch's targets: what is the model's own, and the numbers it is drawn by


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The chance ε that an input is the true token, by step i (§2.4, figure 1): 1 at first, less and less.

    linear: max(least, 1 - i/k) · exponential: k^i, k below 1 · inverse-sigmoid: k / (k + exp(i/k)), k from 1 on.
    """

    shape: Literal["linear", "exponential", "inverse-sigmoid"] = "inverse-sigmoid"
    k: float
    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ConfigError(f"The `least` chance of a true token must be from 0 to 1: got {self.least}.")
        allowed = {"linear": (0.0, math.inf), "exponential": (0.0, 1.0), "inverse-sigmoid": (1.0, math.inf)}
        low, high = allowed[self.shape]
        if not (low < self.k or low == self.k == 1.0) or not self.k < high:
            raise ConfigError(
                f"`k` of a teacher that is {self.shape} must be from {low:g} to {high:g}: got {self.k:g}."
            )

    def chance(self, step: int) -> float:
        """ε of a step."""
        match self.shape:
            case "linear":
                chance = 1 - step / self.k
            case "exponential":
                chance = self.k**step
            case "inverse-sigmoid":
                chance = self.k / (self.k + math.exp(min(step / self.k, 700.0)))
        return max(self.least, chance)


class ScheduledRows:
    """Rows of `rows`, with what of each the model writes itself. `step`: rows of one training step."""

    def __init__(self, rows: Rows, teacher: Teacher, *, seed: int, step: int) -> None:
        if step < 1:
            raise ConfigError(f"`step` is how many rows a step of training has, at least 1: got {step}.")
        self.rows, self.teacher, self.seed, self.step = rows, teacher, seed, step

    def batch(self, start: int, rows: int) -> Batch:
        """Rows start … start + rows - 1 as one batch; its targets say what is the model's own, [B,T] each."""
        batch = self.rows.batch(start, rows)
        own, draw = [], []
        for number in range(start, start + rows):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
            chance = self.teacher.chance(number // self.step)
            own.append(torch.rand(batch.ids.shape[1], generator=generator) >= chance)
            draw.append(torch.rand(batch.ids.shape[1], generator=generator))
        return replace(batch, targets={**batch.targets, OWN: torch.stack(own), DRAW: torch.stack(draw)})


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """`language` on rows that the model wrote in part; held-out rows are as given."""

    language: Language = field(default_factory=Language)

    def counts(self, batch: Batch) -> dict[str, float]:
        """As of `language`."""
        return self.language.counts(batch)

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """As of `language`."""
        if model.training and OWN in batch.targets:
            batch = replace(batch, ids=written(model, batch))
        return self.language(model, batch)


@torch.no_grad()
def written(model: LanguageModel, batch: Batch) -> Tensor:
    """The inputs [B,T] with the model's own words where the batch asks for them; the first of a row is always true."""
    own = batch.targets[OWN].clone()
    own[:, 0] = False
    if batch.segments is not None:
        if int(batch.segments.max()) > 1:
            raise DataError("Scheduled sampling needs rows of one text each: got several packed into a row.")
        own &= batch.segments != 0
    if not bool(own.any()):
        return batch.ids
    model.eval()
    try:
        return _write(model, batch, own)
    finally:
        model.train()


def _write(model: LanguageModel, batch: Batch, own: Tensor) -> Tensor:
    ids, draw = batch.ids.clone(), batch.targets[DRAW]
    last = int(torch.where(own.any(0), torch.arange(own.shape[1], device=own.device), 0).max())
    encoded = None if batch.source is None else model.encode_source(batch.source, batch.source_segments)
    cache = Contiguous.of(model, batch.rows, last)
    for t in range(last):
        hidden = model.hidden(
            ids[:, t : t + 1],
            segments=None if batch.segments is None else batch.segments[:, t : t + 1],
            encoded=encoded,
            source_segments=batch.source_segments,
            cache=cache,
        )
        sums = model.head(hidden[:, 0]).float().softmax(-1).cumsum(-1)  # [B,V]
        at = draw[:, t + 1 : t + 2] * sums[:, -1:]
        word = torch.searchsorted(sums, at, right=True).squeeze(1).clamp(max=sums.shape[1] - 1)
        ids[:, t + 1] = torch.where(own[:, t + 1], word, ids[:, t + 1])
    return ids
