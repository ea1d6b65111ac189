"""Tokens to measure a model on, written by the model itself.

Writing them one by one would cost a pass for each. Instead all places are drawn at once, a few times over, each from
what the model says after the places drawn before: after k passes every token has at least k of the model's own before
it. A pure function of the model and the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openbook.nn.model import LanguageModel

ROWS, LENGTH, PASSES = 8, 48, 4


@torch.no_grad()
def written(model: LanguageModel, rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Ids [rows,length]."""
    chance = torch.Generator().manual_seed(seed)
    length = length if model.spec.context is None else min(length, model.spec.context)
    ids = torch.randint(model.spec.embed.vocab, (rows, length), generator=chance).to(model.device)
    if model.spec.language is None or model.spec.language.directions > 1:
        return ids
    causal = model.spec.causal
    for _ in range(PASSES):
        logits = model(ids, source=ids if model.source is not None else None).float()  # [B,T,V]
        spread = -torch.empty(logits.shape).exponential_(generator=chance).log()  # Gumbel noise
        drawn = (logits + spread.to(logits.device)).argmax(dim=-1)
        ids = torch.cat([ids[:, :1], drawn[:, :-1]], dim=1) if causal else drawn
    return ids


def is_causal(model: LanguageModel) -> bool:
    """Whether a token sees only what is before it."""
    return model.spec.causal


def rows_of(texts: list[list[int]], context: int | None = None, most: int = ROWS * LENGTH) -> Tensor:
    """Rows of equal length from given texts, [rows,length]: their ids one after another, at most `most`."""
    flat = [one for text in texts for one in text][:most]
    length = max(1, min(LENGTH, len(flat), context or LENGTH))
    rows = len(flat) // length
    return torch.tensor(flat[: rows * length]).view(rows, length)
