"""How well a model does on text it does not learn from: the plain loss, and perplexity per token and per byte.

Only what is per byte compares models with different tokenizers: see `text/perplexity.py`. Sums first, over all batches
and ranks; one division at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from openbook.data.batch import Batch
from openbook.data.heldout import Together
from openbook.nn.model import LanguageModel
from openbook.text.perplexity import Perplexity
from openbook.train import ranks
from openbook.train.objectives import Language, Objective

PERPLEXITIES = ("perplexity_per_token", "perplexity_per_byte", "bits_per_byte")  # see `Perplexity.plain`


class Texts(Protocol):
    """Held-out batches; `data.heldout.HeldOut` is one."""

    bytes: int  # of the text that all targets together spell; 0: not known

    def __iter__(self) -> Iterator[Batch]: ...


@torch.no_grad()
def evaluate(model: LanguageModel, objective: Objective, heldout: Texts) -> dict[str, float]:
    """`loss` in nats per counted thing, without smoothing and penalties; every term by name; of language over text
    whose bytes are known, perplexity per token and per byte, and bits per byte.

    Of several sources together (`data.heldout.Together`) also `loss NAME`, `bits_per_byte NAME` … of each. Every rank
    walks over all batches and measures its share of them.
    """
    was_training = model.training
    model.eval()
    if isinstance(objective, Language):
        objective = replace(objective, label_smoothing=0.0, z_loss=0.0, ahead=None)
    parts: dict[str, Texts] = {**heldout.parts} if isinstance(heldout, Together) else {"": heldout}
    sums, every = {name: _sums(model, objective, part) for name, part in parts.items()}, Sums()
    for one in sums.values():
        every.add(one)
    model.train(was_training)
    found = _means(every, heldout.bytes)
    if isinstance(heldout, Together):
        for name, part in parts.items():
            of = _means(sums[name], part.bytes)
            found |= {f"{key} {name}": of[key] for key in ("loss", *PERPLEXITIES) if key in of}
    return found


@torch.no_grad()
def perplexity(model: LanguageModel, heldout: Texts, tokenizer: str = "") -> Perplexity:
    """Of all that `heldout` wants foreseen, in the tokens of the `tokenizer` with this fingerprint."""
    was_training = model.training
    model.eval()
    sums = _sums(model, Language(), heldout)
    model.train(was_training)
    return _perplexity(sums, heldout.bytes, tokenizer)


@dataclass
class Sums:
    """What batches add up to, by name, and what the terms weigh."""

    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Those of other batches, too."""
        self.weights |= other.weights
        for name, value in other.totals.items():
            self.totals[name] += value


def _sums(model: LanguageModel, objective: Objective, heldout: Texts) -> Sums:
    """Over all batches and ranks."""
    sums = Sums()
    for number, batch in enumerate(heldout):
        if number % ranks.size() != ranks.rank():
            continue
        counts = objective.counts(batch)
        for name, term in objective(model, batch.to(model.device)).items():
            sums.weights[name] = term.weight
            sums.totals[f"total {name}"] += term.total.item()
            sums.totals[f"count {name}"] += counts[name]
            for key, value in term.shown.items():
                sums.totals[f"shown {name} {key}"] += value.item()
    return Sums(*ranks.sum_unlike(sums.totals, sums.weights))


def _means(sums: Sums, size: int) -> dict[str, float]:
    found, totals = {"loss": 0.0}, sums.totals
    for name, weight in sums.weights.items():
        share = max(totals[f"count {name}"], 1.0)
        found[name] = totals[f"total {name}"] / share
        found["loss"] += weight * found[name]
        start = f"shown {name} "
        found |= {key.removeprefix(start): value / share for key, value in totals.items() if key.startswith(start)}
    if size and "shown language nll" in totals and totals["count language"] >= 1:
        found |= _perplexity(sums, size).plain()
    return found


def _perplexity(sums: Sums, size: int, tokenizer: str = "") -> Perplexity:
    nats, tokens = sums.totals["shown language nll"], round(sums.totals["count language"])
    return Perplexity(nats=nats, tokens=tokens, bytes=size, tokenizer=tokenizer)
