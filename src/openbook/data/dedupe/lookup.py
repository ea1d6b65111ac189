"""N-grams of a text that stand in a sorted array of hashes, which may lie in a file: a nanosecond or two for each."""

from __future__ import annotations

import numpy as np

from openbook.data.dedupe.words import Hashes, Ints, library, ngrams

LARGEST = 22  # bits of the directory, which is in memory
FINER = 4  # the filter has so many bits more: one in 2^4 hashes passes that is not there


class Lookup:
    """A sorted array without repeats, with a filter and a directory of the upper bits of its hashes."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes  # [K]
        bits = min(LARGEST, max(1, len(hashes).bit_length()))
        self.shift, self.coarse = 64 - bits, 64 - bits - FINER
        edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self.shift)
        self.starts = np.append(np.searchsorted(hashes, edges), len(hashes)).astype(np.int64)  # [2^bits + 1]
        there = np.zeros(1 << (bits + FINER), bool)
        there[(hashes >> np.uint64(self.coarse)).astype(np.int64)] = True
        self.filter = np.packbits(there, bitorder="little")

    def search(self, units: Hashes, n: int) -> tuple[Ints, Ints]:
        """The runs of `n` units that stand in the array: where each begins in `units`, and its place in the array."""
        found = library()
        if found is None:
            return search_reference(units, n, self.hashes)
        units, room, count = np.ascontiguousarray(units), 256, 257
        while count > room:  # once more with room for all of them
            room = max(room, count)
            places, numbers = np.empty(room, np.int64), np.empty(room, np.int64)
            count = found.openbook_minhash_search(
                units.ctypes.data, len(units), n, self.hashes.ctypes.data, self.filter.ctypes.data, self.coarse,
                self.starts.ctypes.data, self.shift, places.ctypes.data, numbers.ctypes.data, room,
            )  # fmt: skip
        return places[:count], numbers[:count]


def search_reference(units: Hashes, n: int, hashes: Hashes) -> tuple[Ints, Ints]:
    """The same in numpy."""
    wanted = ngrams(units, n)
    if not len(hashes) or not len(wanted):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    numbers = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    places = np.flatnonzero(hashes[numbers] == wanted)
    return places, numbers[places].astype(np.int64)
