"""The one place where training talks to other processes; alone, every function here returns what it was given.

Plain sums over `torch.distributed` when it is initialised (torchrun, or a test): the counts of a step before its
backward pass, the gradients after it, and a vote on stopping and saving. Gradients travel in few flat buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 32 << 20  # elements of one flat buffer


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """How many processes train this model."""
    return dist.get_world_size() if _together() else 1


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_numbers(numbers: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The same named numbers, summed over ranks. Every rank must name the same ones."""
    if not _together():
        return dict(numbers)
    names = sorted(numbers)
    total = torch.tensor([numbers[name] for name in names], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def sum_tensor(tensor: Tensor) -> Tensor:
    """The same tensor, summed over ranks in place."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def sum_unlike(numbers: Mapping[str, float], same: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers summed over ranks that need not name the same ones; and the union of `same`, which agree where known."""
    if not _together():
        return dict(numbers), dict(same)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (dict(numbers), dict(same)))
    totals: dict[str, float] = {}
    union: dict[str, float] = {}
    for theirs, known in everyone:
        union |= known
        for name, value in theirs.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals, union


def agree(flags: Iterable[bool], device: torch.device) -> tuple[bool, ...]:
    """Each flag, raised if any rank raised it."""
    raised = tuple(flags)
    if not _together():
        return raised
    votes = torch.tensor([float(flag) for flag in raised], device=device)
    dist.all_reduce(votes)
    return tuple(vote > 0 for vote in votes.tolist())


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over ranks; a parameter without gradient on all ranks keeps none."""
    if not _together():
        return
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    present = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    dist.all_reduce(present)
    for parameter, count in zip(trained, present.tolist(), strict=True):
        if count and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for gradient in (p.grad for p in trained if p.grad is not None):
        if bucket and (sum(g.numel() for g in bucket) + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            _sum_bucket(bucket)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def meet() -> None:
    """Wait until every rank is here."""
    if _together():
        dist.barrier()
