"""From the logits of a step to the next token of each row, for rows that change from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openbook.generate.sampler import Row, Sampler


class Chooser:
    """Keeps the sampler of the last step: in steady decoding its rows are the same again."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self.device = device
        self._sampler: Sampler | None = None

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """The next id of each row by logits [N,V], taken into its history; -1 where none could be chosen."""
        sampler = self._for(rows)
        tokens: list[int] = sampler.choose(logits).tolist()
        sampler.commit([max(token, 0) for token in tokens])
        for row, token in zip(rows, tokens, strict=True):
            if token < 0:
                row.output.pop()
        return tokens

    def _for(self, rows: Sequence[Row]) -> Sampler:
        sampler = self._sampler
        if (
            sampler is None
            or len(sampler.rows) != len(rows)
            or any(a is not b for a, b in zip(sampler.rows, rows, strict=True))
        ):
            sampler = self._sampler = Sampler(rows, self.vocab, self.device)
        return sampler
