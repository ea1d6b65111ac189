"""N-grams of a text that stand in a sorted array of hashes, which may lie in a file: a nanosecond or two for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openbook.data.dedupe.words import Hashes, Ints, library, ngrams

LARGEST = 22  # bits of the directory, which is in memory
FINER = 4  # the filter has so many bits more: one in 2^4 hashes passes that is not there
ROOM = 256  # hits that are expected


class Lookup:
    """A sorted array without repeats, with a filter and a directory of the upper bits of its hashes."""

    def __init__(self, hashes: Hashes, lengths: Sequence[int]) -> None:
        self.hashes = hashes  # [K]
        self.lengths: Ints = np.array(lengths, np.int64)  # of how many units they may be
        bits = min(LARGEST, max(1, len(hashes).bit_length()))
        self.shift, self.coarse = 64 - bits, 64 - bits - FINER
        edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self.shift)
        self.starts = np.append(np.searchsorted(hashes, edges), len(hashes)).astype(np.int64)  # [2^bits + 1]
        there = np.zeros(1 << (bits + FINER), bool)
        there[(hashes >> np.uint64(self.coarse)).astype(np.int64)] = True
        self.filter = np.packbits(there, bitorder="little")
        self._given = (
            self.lengths.ctypes.data, len(self.lengths), self.hashes.ctypes.data, self.filter.ctypes.data, self.coarse,
            self.starts.ctypes.data, self.shift,
        )  # fmt: skip

    def search(self, units: Hashes) -> Ints:
        """The n-grams of `units` that stand in the array, [3,H]: the first unit, n, and the place in the array."""
        found = library()
        if found is None:
            return search_reference(units, self.hashes, self.lengths)
        room, count = ROOM, ROOM + 1
        while count > room:  # once more with room for all of them
            room = max(room, count)
            hits = np.empty((3, room), np.int64)
            count = found.openbook_minhash_search(
                units.ctypes.data, len(units), *self._given, hits.ctypes.data, room
            )  # fmt: skip
        return hits[:, :count]


def search_reference(units: Hashes, hashes: Hashes, lengths: Ints) -> Ints:
    """The same in numpy."""
    hits = [np.zeros((3, 0), np.int64)]
    for n in lengths.tolist():
        wanted = ngrams(units, n)
        numbers = np.minimum(np.searchsorted(hashes, wanted), max(0, len(hashes) - 1))
        places = np.flatnonzero(hashes[numbers] == wanted) if len(hashes) else np.zeros(0, np.int64)
        hits.append(np.stack([places, np.full(len(places), n), numbers[places]]))
    return np.concatenate(hits, 1)
