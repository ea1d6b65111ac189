"""From logits to one token per row: exact argmax, or one uniform number through the inverse of the distribution.

Randomness is counter-based: `uniform(seed, choice, index)` is a pure function, so a request draws the same numbers
whatever runs beside it, after a restart, and on any device (SplitMix64: Steele, Lea & Flood 2014, "Fast splittable
pseudorandom number generators"; the state is hashed from seed and choice, the index counts). One number per token
suffices: the token is the first id whose cumulative probability, in the order of ids, exceeds it.

`narrow` is the fast path of sampling on a CPU, where sorting a vocabulary costs more than a small model: when top-k,
top-p or min-p leaves few ids, the filters and the draw run on those alone. It is exact: a row for which the few could
differ from the many (ties at the edge, a flat distribution) takes the long way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from openbook.generate import processors
from openbook.generate.sampling import Sampling

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
NUCLEUS = (512, 4096)  # ids that are tried for top-p and min-p before all
SPARE = 64  # ids beyond top_k, so that a few ties at its edge stay on the fast path
MARGIN = 1e-4  # distance of a cumulative probability from the edge, beyond any rounding of a float32 sum


def _mix(x: int) -> int:
    """SplitMix64's finaliser: a bijection of 64 bits."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def stream(seed: int, choice: int = 0) -> int:
    """The 64-bit state from which choice number `choice` of a request with `seed` draws."""
    return _mix((_mix((seed + _GOLDEN) & _MASK) + (choice + 1) * _GOLDEN) & _MASK)


def uniform(state: int, index: int) -> float:
    """Number `index` of the stream: 53 random bits in [0, 1)."""
    return (_mix((state + (index + 1) * _GOLDEN) & _MASK) >> 11) * 2.0**-53


def branch(state: int, number: int) -> int:
    """A stream of its own beside `state`, for draws that are not the output's tokens (drafts, say)."""
    return _mix(state ^ _mix((number + 1) * _GOLDEN & _MASK))


def argmax(logits: Tensor) -> Tensor:
    """The lowest id among the largest logits of each row, [B,V] → [B]; -1 where the row is all -inf or holds NaN."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        table = logits.detach().numpy()  # many times faster than torch's own, and a NaN comes out as the best
        ids = torch.from_numpy(table.argmax(-1))
        best = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        return torch.where(best > processors.IMPOSSIBLE, ids, -1)
    best, ids = logits.max(dim=-1)
    return torch.where(best > processors.IMPOSSIBLE, ids, -1)


def categorical(logits: Tensor, numbers: Sequence[float]) -> Tensor:
    """Draws one place per row of `logits` [B,V] by its uniform number → [B]; -1 where no id is possible, or on NaN."""
    below = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = below[:, -1:]
    aim = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unsqueeze(1) * total
    places = torch.searchsorted(below, aim, right=True).squeeze(1)
    return torch.where(total.squeeze(1) > 0, places, -1)


class Narrow(NamedTuple):
    """A few ids per row, in ascending order, which hold everything that the filters could keep."""

    logits: Tensor  # [B,M]
    ids: Tensor  # [B,M] int64
    outside: Tensor | None  # [B,1]: probability of the ids left out, where a filter still needs it
    exact: Tensor  # [B] bool: False where the few do not suffice


def widths(sampling: Sampling, vocab: int) -> tuple[int, ...]:
    """How many ids to try before all `vocab` of them, few first; none where trying would save nothing."""
    if sampling.top_k:
        tries: tuple[int, ...] = (sampling.top_k + SPARE,)
    elif (sampling.top_p < 1 or sampling.min_p > 0) and sampling.typical_p >= 1:
        tries = NUCLEUS
    else:
        tries = ()
    return tuple(few for few in tries if 4 * few <= vocab)


def narrow(logits: Tensor, sampling: Sampling, few: int) -> Narrow:
    """The `few` ids of `logits` [B,V] (already divided by the temperature) most likely to survive the filters."""
    values, ids = torch.topk(logits, few)  # descending
    outside = None
    if sampling.top_k:
        exact = values[:, -1] < values[:, sampling.top_k - 1]
    else:
        whole = logits.logsumexp(-1, keepdim=True)
        mass = (values - whole).exp()
        outside = (1 - mass.sum(-1, keepdim=True)).clamp(min=0)
        if sampling.top_p < 1:  # all ids outside are removed, and those inside that equal the best of them
            edge = outside + (mass * (values == values[:, -1:])).sum(-1, keepdim=True)
            exact = (edge < 1 - sampling.top_p - MARGIN).squeeze(1)
        else:
            ratio = (values[:, -1] - values[:, 0]).exp()
            exact = ratio < sampling.min_p * (1 - MARGIN)
    ids, order = ids.sort(dim=-1)
    return Narrow(values.gather(-1, order), ids, outside, exact)


def filtered(logits: Tensor, sampling: Sampling, outside: Tensor | None = None) -> Tensor:
    """Steps 8 to 11 of `processors.py`, those that are on."""
    if sampling.top_k:
        logits = processors.top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = processors.top_p(logits, sampling.top_p, outside)
    if sampling.min_p > 0:
        logits = processors.min_p(logits, sampling.min_p)
    if sampling.typical_p < 1:
        logits = processors.typical(logits, sampling.typical_p)
    return logits


def choose(logits: Tensor, sampling: Sampling, numbers: Sequence[float]) -> Tensor:
    """One id per row of `logits` [B,V] float32, by steps 7 to 11 and the row's uniform number → [B] int64.

    -1 stands for a row in which no id is possible or a logit is NaN.
    """
    if sampling.greedy:
        return argmax(logits)
    if sampling.temperature != 1.0:
        logits = processors.temperature(logits, sampling.temperature)
    tries = widths(sampling, logits.shape[-1]) if logits.device.type == "cpu" else ()
    return _choose(logits, sampling, numbers, tries)


def _choose(logits: Tensor, sampling: Sampling, numbers: Sequence[float], tries: tuple[int, ...]) -> Tensor:
    if not tries:
        return categorical(filtered(logits, sampling), numbers)
    few = narrow(logits, sampling, tries[0])
    places = categorical(filtered(few.logits, sampling, few.outside), numbers)
    tokens = torch.where(places < 0, -1, few.ids.gather(1, places.clamp(min=0).unsqueeze(1)).squeeze(1))
    if bool(few.exact.all()):
        return tokens
    rows = (~few.exact).nonzero().squeeze(1)
    rest = _choose(logits[rows], sampling, [numbers[row] for row in rows.tolist()], tries[1:])
    return tokens.index_copy(0, rows, rest)
