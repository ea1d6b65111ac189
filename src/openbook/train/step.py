"""One step of training: from rows of the data to summed gradients.

    rows [position, position + R) → micro-batches → counts of all of them, on all ranks → for each: forward, total /
    count, backward → gradients summed over ranks

The counts come first, so every micro-batch already divides by the count of the whole step and gradients simply add up.
Random numbers (dropout) are a pure function of (seed, step, micro-batch): neither a resume nor a measurement in
between can change them. R rows of a step.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from openbook.data.batch import Batch
from openbook.errors import DataError
from openbook.nn.model import LanguageModel
from openbook.train import ranks
from openbook.train.objectives import Objective, real_tokens


class Rows(Protocol):
    """Training data as an endless row of rows, a pure function of its seed and the row's number."""

    def batch(self, start: int, rows: int) -> Batch:
        """Rows start … start + rows - 1 as one batch."""
        ...


class Piece(NamedTuple):
    """A micro-batch: which rows, and its number within the step."""

    number: int
    start: int
    length: int


class Sums(NamedTuple):
    """What a step found out, over all its micro-batches and ranks."""

    loss: float
    shown: dict[str, float]  # every term and what it shows, each divided by its count
    tokens: int  # real tokens read
    loads: dict[str, list[float]]  # of each mixture of experts: see train/experts.py


def pieces(start: int, rows: int, micro_rows: int, size: int = 1) -> list[Piece]:
    """Rows [start, start + rows) as micro-batches of at most `micro_rows` (0: any); at least one for each rank."""
    count = max(-(-rows // (micro_rows or rows)), min(size, rows))
    edges = [rows * part // count for part in range(count + 1)]
    return [Piece(n, start + a, b - a) for n, (a, b) in enumerate(itertools.pairwise(edges))]


def seed_piece(seed: int, step: int, number: int) -> None:
    """Set torch's random state for one micro-batch of one step."""
    digest = hashlib.blake2b(f"{seed} {step} {number}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def gather(
    model: LanguageModel, objective: Objective, batches: Sequence[Batch], numbers: Sequence[int], seed: int, step: int
) -> Sums:
    """Leave the gradient of one step's mean loss on the parameters of `model`, summed over all ranks."""
    counts = count(objective, batches, model.device)
    sums: dict[str, Tensor] = {}
    for number, batch in zip(numbers, batches, strict=True):
        seed_piece(seed, step, number)
        loss, parts = measure(model, objective, batch, counts)
        if loss.requires_grad:
            loss.backward()
        for name, value in parts.items():
            sums[name] = sums[name] + value if name in sums else value
    ranks.sum_gradients(model.parameters())
    names = sorted(sums)
    flat = torch.cat([sums[name].double().flatten() for name in names])
    parts = ranks.sum_tensor(flat).cpu().split([sums[name].numel() for name in names])  # the one wait for the device
    found = dict(zip(names, parts, strict=True))
    shown = {name: part.item() for name, part in found.items() if not sums[name].ndim}
    loads = {name: part.tolist() for name, part in found.items() if sums[name].ndim}
    return Sums(shown.pop("loss"), shown, int(counts["tokens"]), loads)


def count(objective: Objective, batches: Sequence[Batch], device: torch.device) -> dict[str, float]:
    """Each term's count over these batches and all ranks, and the real tokens as `tokens`."""
    counts = {"tokens": 0.0}
    for batch in batches:
        for name, value in (objective.counts(batch) | {"tokens": float(real_tokens(batch).sum())}).items():
            counts[name] = counts.get(name, 0.0) + value
    return ranks.sum_numbers(counts, device)


def measure(
    model: LanguageModel, objective: Objective, batch: Batch, counts: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch's share of the step's loss, with gradient; and its parts, without: `loss`, all terms, what they show.

    Loads of experts are vectors among the parts, and the only ones.
    """
    terms = objective(model, batch.to(model.device))
    loss = torch.zeros((), device=model.device)
    parts: dict[str, Tensor] = {}
    for name, term in terms.items():
        share = max(counts[name], 1.0)  # no token to learn from: the total is zero too
        loss = loss + term.weight * term.total / share
        parts[name] = term.total.detach() / share
        parts |= {key: value.detach() / share for key, value in term.shown.items()} | dict(term.loads)
    return loss, {"loss": loss.detach(), **parts}


class Norms(NamedTuple):
    """Gradient norms of a step: of everything, and by layer."""

    total: Tensor  # scalar
    names: list[str]
    each: Tensor  # [parameters]

    def by_layer(self) -> dict[str, float]:
        """The norm of each block and of what is outside the blocks, under the module's name."""
        squares: dict[str, float] = {}
        for name, norm in zip(self.names, self.each.tolist(), strict=True):
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0.0) + norm * norm
        return {layer: square**0.5 for layer, square in squares.items()}


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: its name up to the first number, or the module that holds it."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1]) or name


def gradient_norms(model: nn.Module) -> Norms:
    """The norms of all gradients that are there. Errors: DataError if there is none."""
    found = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not found:
        raise DataError("No parameter received a gradient: the loss does not depend on anything that is trained.")
    each = torch.stack(torch._foreach_norm([gradient for _, gradient in found]))
    return Norms(torch.linalg.vector_norm(each), [name for name, _ in found], each)


@torch.no_grad()
def clip(model: nn.Module, norm: float, limit: float) -> None:
    """Scale all gradients so that their joint norm is at most `limit` (Pascanu et al. 2013); 0 leaves them."""
    if limit and norm > limit:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
