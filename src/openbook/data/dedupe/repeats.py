"""Which of many hashes, in the order of the corpus, were there before: with memory for a part of them at a time.

The hashes may lie in a file (`numpy.memmap`). They are judged range by range of their values: each range is gathered in
one pass, sorted, and judged alone, so that the result does not depend on how many ranges there are.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from openbook.data.dedupe.column import release
from openbook.data.dedupe.words import Hashes, Ints

NEVER = 0  # a hash that stands for nothing, and so repeats nothing
BLOCK = 1 << 22  # hashes read at once


def repeated(hashes: Hashes, *, above: int = 0, together: int = 1 << 24) -> NDArray[np.bool_]:
    """Which occurrences go, [T]: all but the first of each hash; with `above`, all of those that occur more often.

    `together`: about how many hashes are in memory, at 32 bytes each.
    """
    goes = np.zeros(len(hashes), bool)
    parts = -(-len(hashes) // together)
    bounds = [(1 << 64) * part // max(1, parts) for part in range(parts)] + [1 << 64]
    for low, high in pairwise(bounds):
        places = _within(hashes, low, high - 1)
        goes[_later(hashes[places], places, above)] = True
    return goes


def _within(hashes: Hashes, low: int, high: int) -> Ints:
    """Where the hashes from `low` to `high` stand, in order."""
    found = [np.zeros(0, np.int64)]
    for at in range(0, len(hashes), BLOCK):
        block = np.asarray(hashes[at : at + BLOCK])
        chosen = (block >= np.uint64(low)) & (block <= np.uint64(high)) & (block != NEVER)
        found.append(np.flatnonzero(chosen) + at)
    release(hashes)
    return np.concatenate(found)


def _later(hashes: Hashes, places: Ints, above: int) -> Ints:
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    begins = np.ones(len(ranked), bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    if not above:
        return places[order[~begins]]
    first = np.flatnonzero(begins)
    counts = np.diff(np.append(first, len(ranked)))
    return places[order[np.repeat(counts > above, counts)]]
