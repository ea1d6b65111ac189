"""Hashes found in a sorted array of them, which may lie in a file: a few nanoseconds each."""

from __future__ import annotations

import numpy as np

from openbook.data.dedupe.words import Hashes, Ints, library

LARGEST = 22  # bits of the directory, which is in memory


class Lookup:
    """A sorted array without repeats, and a directory that says where each value of the upper bits begins."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes  # [K]
        bits = min(LARGEST, max(1, len(hashes).bit_length()))
        self.shift = 64 - bits
        edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self.shift)
        self.starts = np.append(np.searchsorted(hashes, edges), len(hashes)).astype(np.int64)  # [2^bits + 1]

    def find(self, wanted: Hashes) -> Ints:
        """Where each stands in the array, or -1."""
        found = library()
        if found is None:
            return find_reference(wanted, self.hashes)
        wanted, out = np.ascontiguousarray(wanted), np.empty(len(wanted), np.int64)
        found.openbook_minhash_find(
            wanted.ctypes.data, len(wanted), self.hashes.ctypes.data, self.starts.ctypes.data, self.shift,
            out.ctypes.data,
        )  # fmt: skip
        return out


def find_reference(wanted: Hashes, hashes: Hashes) -> Ints:
    """The same in numpy."""
    if not len(hashes):
        return np.full(len(wanted), -1, np.int64)
    places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    return np.where(hashes[places] == wanted, places, -1).astype(np.int64)
