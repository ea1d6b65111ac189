"""Rows with hidden words: data for masked-language training, made of any rows as a pure function of seed and number.

Each time a row comes again its number is another, and other words are hidden (Liu et al. 2019, §4.1). With `draws`
every place also gets a number from 0 to 1, `targets["draw"]`: what a generator's words are drawn with (replaced.py), so
that those too depend on nothing but the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from openbook.data.batch import Batch
from openbook.train.head_loss import IGNORE
from openbook.train.heldout import Texts
from openbook.train.objectives import Masking, mask_tokens
from openbook.train.step import Rows

DRAWS = 7_919  # apart from the seeds of masking


def hide(batch: Batch, masking: Masking, seed: int, first_row: int, draws: bool = False) -> Batch:
    """A batch of next-word rows with words hidden instead; what its rows did not learn from stays as it is."""
    masked = mask_tokens(batch, masking, seed, first_row)
    left = batch.targets["language"] == IGNORE
    targets = {**masked.targets, "language": masked.targets["language"].masked_fill(left, IGNORE)}
    if draws:
        targets["draw"] = torch.stack([_draws(seed, first_row + row, batch.ids.shape[1]) for row in range(batch.rows)])
    return replace(masked, ids=torch.where(left, batch.ids, masked.ids), targets=targets)


def _draws(seed: int, row: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + row * DRAWS + 1) % 2**63)
    return torch.rand(count, generator=generator)  # [T]


class MaskedRows:
    """Training rows with words hidden."""

    def __init__(self, rows: Rows, masking: Masking, seed: int, *, draws: bool = False) -> None:
        self.rows, self.masking, self.seed, self.draws = rows, masking, seed, draws

    def batch(self, start: int, rows: int) -> Batch:
        """Rows start … start + rows - 1 as one batch."""
        return hide(self.rows.batch(start, rows), self.masking, self.seed, start, self.draws)


class MaskedTexts:
    """Held-out batches with words hidden, the same ones each time. Of bytes nothing can be said."""

    bytes = 0

    def __init__(self, texts: Texts, masking: Masking, seed: int, *, draws: bool = False) -> None:
        self.texts, self.masking, self.seed, self.draws = texts, masking, seed, draws

    def __iter__(self) -> Iterator[Batch]:
        row = 0
        for batch in self.texts:
            real = _rows(batch, (batch.targets["language"] != IGNORE).any(dim=1))  # the last batch is filled up
            yield hide(real, self.masking, self.seed, row, self.draws)
            row += batch.rows


def _rows(batch: Batch, keep: Tensor) -> Batch:
    """The rows of a batch for which `keep` [B] is true."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "targets"}
    kept = {name: tensor[keep] for name, tensor in tensors.items() if tensor is not None}
    return replace(batch, targets={name: tensor[keep] for name, tensor in batch.targets.items()}, **kept)
