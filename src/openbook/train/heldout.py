"""How well a model does on text it does not learn from: the plain loss, and perplexity per token and per byte.

Only what is per byte compares models with different tokenizers: see `text/perplexity.py`. Sums first, over all batches
and ranks; one division at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch

from openbook.data.batch import Batch
from openbook.nn.model import LanguageModel
from openbook.text.perplexity import Perplexity
from openbook.train import ranks
from openbook.train.objectives import Language, Objective


class Texts(Protocol):
    """Held-out batches; `data.heldout.HeldOut` is one."""

    bytes: int  # of the text that all targets together spell; 0: not known

    def __iter__(self) -> Iterator[Batch]: ...


def evaluate(model: LanguageModel, objective: Objective, heldout: Texts) -> dict[str, float]:
    """`loss` in nats per counted thing, without smoothing and penalties; every term by name; for language over text
    whose bytes are known, perplexity per token and per byte, and bits per byte.

    Every rank walks over all batches and measures its share of them.
    """
    return _means(*_sums(model, objective, heldout), heldout.bytes)


def perplexity(model: LanguageModel, heldout: Texts, tokenizer: str = "") -> Perplexity:
    """Of all that `heldout` wants to be foreseen, in the tokens of the `tokenizer` with this fingerprint."""
    totals, _ = _sums(model, Language(), heldout)
    return _perplexity(totals, heldout.bytes, tokenizer)


@torch.no_grad()
def _sums(model: LanguageModel, objective: Objective, heldout: Texts) -> tuple[dict[str, float], dict[str, float]]:
    """Totals and counts of all terms and of what they show, by `total NAME` …; the weights of the terms."""
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
    return ranks.sum_unlike(totals, weights)


def _means(totals: dict[str, float], weights: dict[str, float], size: int) -> dict[str, float]:
    found = {"loss": 0.0}
    for name, weight in weights.items():
        share = max(totals[f"count {name}"], 1.0)
        found[name] = totals[f"total {name}"] / share
        found["loss"] += weight * found[name]
        start = f"shown {name} "
        found |= {key.removeprefix(start): value / share for key, value in totals.items() if key.startswith(start)}
    if size and totals.get("shown language nll") is not None and totals["count language"] >= 1:
        found |= _perplexity(totals, size).plain()
    return found


def _perplexity(totals: dict[str, float], size: int, tokenizer: str = "") -> Perplexity:
    nats, tokens = totals["shown language nll"], round(totals["count language"])
    return Perplexity(nats=nats, tokens=tokens, bytes=size, tokenizer=tokenizer)
