"""Marked tokens: a prefix that is read both ways, or global tokens that see all and are seen by all (see `Pattern`).

Everything about them is made once, outside the layers. Symbols: M the most marked tokens of a row; see shapes.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openbook.nn import spec


class Marks(NamedTuple):
    """Which tokens are marked, where they are, and what they see."""

    flags: Tensor  # [B,T] boolean
    places: Tensor  # [B,M] of each row's marked tokens, in order; 0 where a row has fewer
    real: Tensor  # [B,M] boolean: false where a row has fewer
    numbers: Tensor  # [B,T] which of its row's marked tokens a token is; 0 where it is none
    seen: Tensor  # [B,1,M,T] boolean: the marked token's own segment


def mark(flags: Tensor, segments: Tensor | None) -> Marks | None:
    """Of [B,T] flags; None if nothing is marked. Padding cannot be."""
    flags = flags.bool()
    if segments is not None:
        flags = flags & (segments != 0)
    most = int(flags.sum(1).max()) if flags.numel() else 0
    if not most:
        return None
    order = flags.long().argsort(dim=1, descending=True, stable=True)[:, :most]  # marked tokens first
    real = flags.gather(1, order)
    places = torch.where(real, order, 0)
    numbers = torch.where(flags, flags.long().cumsum(1) - 1, 0)
    if segments is None:
        seen = real.new_ones(flags.shape[0], 1, most, flags.shape[1])
    else:
        own = segments.gather(1, places)  # [B,M]
        seen = ((own.unsqueeze(2) == segments.unsqueeze(1)) | ~real.unsqueeze(2)).unsqueeze(1)  # no row is empty
    return Marks(flags, places, real, numbers, seen)


def usual(rule: spec.MarkFirst | spec.MarkBefore, ids: Tensor, positions: Tensor) -> Tensor:
    """What a task marks of itself, [B,T] boolean, from ids and positions that start at 0 with each text.

    A text without the token that `MarkBefore` names is marked as a whole.
    """
    if isinstance(rule, spec.MarkFirst):
        return positions == 0
    ends = ids == rule.token
    passed = ends.long().cumsum(1)
    start = (torch.arange(ids.shape[1], device=ids.device) - positions).clamp(min=0)  # where each token's text begins
    before = (passed - ends.long()).gather(1, start)  # passed before the text
    return passed == before


def pick(x: Tensor, marks: Marks) -> Tensor:
    """The marked tokens' vectors: [B,T,..] → [B,M,..]."""
    places = marks.places.reshape(*marks.places.shape, *[1] * (x.ndim - 2))
    return x.gather(1, places.expand(-1, -1, *x.shape[2:]))


def put(x: Tensor, picked: Tensor, marks: Marks) -> Tensor:
    """x [B,T,..] with the marked tokens' vectors replaced by `picked` [B,M,..]."""
    shape = (*marks.numbers.shape, *[1] * (x.ndim - 2))
    own = picked.gather(1, marks.numbers.reshape(shape).expand(-1, -1, *x.shape[2:]))
    return torch.where(marks.flags.reshape(shape), own, x)
