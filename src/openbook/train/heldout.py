"""How well a model does on text it does not learn from: the plain loss, and bits per byte.

    bits per byte = Σ nll / ln 2 / bytes of the text that the targets spell

Bits per byte compares models with different tokenizers. Sums first, over all batches and ranks; one division at the
end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch

from openbook.data.batch import Batch
from openbook.nn.model import LanguageModel
from openbook.train import ranks
from openbook.train.objectives import Language, Objective


class Texts(Protocol):
    """Held-out batches; `data.heldout.HeldOut` is one."""

    bytes: int  # of the text that all targets together spell; 0: not known

    def __iter__(self) -> Iterator[Batch]: ...


@torch.no_grad()
def evaluate(model: LanguageModel, objective: Objective, heldout: Texts) -> dict[str, float]:
    """`loss` in nats per counted thing, without smoothing and penalties; every term by name; bits per byte.

    Every rank walks over all batches and measures its share of them.
    """
    was_training = model.training
    model.eval()
    if isinstance(objective, Language):
        objective = replace(objective, label_smoothing=0.0, z_loss=0.0, ahead=None)
    totals: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = {}
    for number, batch in enumerate(heldout):
        if number % ranks.size() != ranks.rank():
            continue
        counts = objective.counts(batch)
        for name, term in objective(model, batch.to(model.device)).items():
            weights[name] = term.weight
            totals[f"total {name}"] += term.total.item()
            totals[f"count {name}"] += counts[name]
            for key, value in term.shown.items():
                totals[f"shown {name} {key}"] += value.item()
    model.train(was_training)
    return _means(*ranks.sum_unlike(totals, weights), heldout.bytes)


def _means(totals: dict[str, float], weights: dict[str, float], size: int) -> dict[str, float]:
    found = {"loss": 0.0}
    for name, weight in weights.items():
        share = max(totals[f"count {name}"], 1.0)
        found[name] = totals[f"total {name}"] / share
        found["loss"] += weight * found[name]
        start = f"shown {name} "
        found |= {key.removeprefix(start): value / share for key, value in totals.items() if key.startswith(start)}
    if size and "shown language nll" in totals:
        found["bits_per_byte"] = totals["shown language nll"] / math.log(2) / size
    return found
