"""From the logits of a step to the next token of each row, for rows that change from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openbook.errors import OpenbookError
from openbook.generate.sampler import Row, Sampler


class Chooser:
    """One sampler for all steps: rows that were there in the last one keep what is known of them."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._sampler = Sampler([], vocab, device)

    def process(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits [N,V] as the settings and histories of their rows change them, before any draw."""
        self._sampler.update(rows)
        return self._sampler.process(logits)

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> list[int | OpenbookError]:
        """The next id of each row by logits [N,V], taken into its history; or why there is none."""
        self._sampler.update(rows)
        tokens: list[int] = self._sampler.choose(logits).tolist()
        errors = self._sampler.take(tokens)
        return [token if error is None else error for token, error in zip(tokens, errors, strict=True)]
