"""Near duplicates: MinHash signatures, bands of them, and the clusters of documents that share one (MinHash-LSH).

    text ──shingles──▶ set of hashes ──P permutations, least value of each──▶ signature [P]
    signature ──cut into `bands` of `rows`──▶ documents with an equal band are candidates ──verified──▶ clusters

Two signatures agree in a share of their places that estimates the Jaccard similarity of the sets (Broder 1997). Two
documents of similarity s share a band with probability 1 - (1 - s^rows)^bands: Leskovec, Rajaraman, Ullman, *Mining of
Massive Datasets*, section 3.4. The bands are there to miss little; candidates whose signatures agree in less than
`threshold` are let go. Permutations are affine mod 2^32, x → a·x + b with odd a, after MurmurHash3's finaliser: those
of datasketch 2, for the same seed.

Memory: signatures may lie in a file (`numpy.memmap`, [N,P]); bands are judged one after the other, at 24 bytes a
document. The result does not depend on the order of the bands, nor on the blocks in which signatures were made.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook.data.dedupe.column import release
from openbook.data.dedupe.words import UNIT, Hashes, Ints, check_unit, library, mix, ngrams, table, units
from openbook.errors import UsageError

Signatures = NDArray[np.uint32]

EMPTY = 0xFFFFFFFF  # in every place of a text without a unit: it is like no other
BLOCK = 1 << 14  # signatures handled at once
IN_MEMORY = 1 << 28  # bytes of band keys; more of them go to a file


@dataclass(frozen=True, kw_only=True)
class Near:
    """What is near. Signatures are comparable for equal `unit`, `shingle` and `seed`."""

    unit: str = "words"  # or "characters"
    shingle: int = 5  # units
    bands: int = 32
    rows: int = 4
    seed: int = 1
    threshold: float = 0.5  # Jaccard similarity, estimated from the signatures, of a pair that is joined; 0: no check
    reach: int = 32  # of documents with an equal band each is compared with the first and this many before it

    def __post_init__(self) -> None:
        check_unit(self.unit)
        for name in ("shingle", "bands", "rows", "reach"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"`{name}` is at least 1: got {value}.")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"`threshold` is a similarity from 0 to 1: got {self.threshold}.")

    @property
    def permutations(self) -> int:
        """P: numbers of a signature."""
        return self.bands * self.rows

    @property
    def least(self) -> int:
        """Places of P in which two signatures must agree."""
        return math.ceil(self.threshold * self.permutations - 1e-9)


def chance(similarity: float | NDArray[np.float64], bands: int, rows: int) -> NDArray[np.float64]:
    """The probability that two documents of a Jaccard similarity become candidates: the S-curve."""
    return 1 - (1 - np.asarray(similarity, np.float64) ** rows) ** bands


def choose_bands(threshold: float, permutations: int = 128, *, misses: float = 0.8) -> tuple[int, int]:
    """`(bands, rows)` of at most so many permutations whose S-curve parts best at `threshold`.

    What is minimised is the area of wrong candidates under the threshold plus that of missed ones above it; `misses` is
    the weight of the latter, 0 to 1. Missed pairs are lost, wrong candidates are only verified in vain.
    """
    if not 0 < threshold < 1:
        raise UsageError(f"`threshold` is a similarity between 0 and 1: got {threshold}.")
    below, above = np.linspace(0, threshold, 257), np.linspace(threshold, 1, 257)
    best, least = (permutations, 1), math.inf
    for rows in range(1, permutations + 1):
        for bands in range(1, permutations // rows + 1):
            wrong = chance(below, bands, rows).mean() * threshold
            missed = (1 - chance(above, bands, rows)).mean() * (1 - threshold)
            if (cost := (1 - misses) * wrong + misses * missed) < least:
                best, least = (bands, rows), cost
    return best


# --------------------------------------------------------------------------------------------------------- signatures


@functools.lru_cache(8)
def permutations(seed: int, count: int) -> tuple[Signatures, Signatures]:
    """a (odd) and b of each permutation, [P] each."""
    draw = np.random.RandomState(seed)  # the legacy generator: its numbers never change
    a = draw.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, draw.randint(0, 1 << 32, count, dtype=np.uint32)


def shingles(text: str, near: Near) -> NDArray[np.uint32]:
    """The hashes of a text's shingles; a text with fewer units than a shingle is one shingle."""
    hashes = units(text, near.unit).hashes
    return (ngrams(hashes, max(1, min(near.shingle, len(hashes)))) >> np.uint64(32)).astype(np.uint32)


def signatures(texts: Iterable[str], near: Near) -> Signatures:
    """The signature of each text, [N,P]."""
    found = library()
    if found is None:
        return signatures_reference(texts, near)
    a, b = permutations(near.seed, near.permutations)
    data = [text.encode("utf-8", "surrogatepass") for text in texts]
    bounds = np.cumsum([0, *map(len, data)], dtype=np.int64)
    entries, out = table(), np.empty((len(data), near.permutations), np.uint32)
    status = found.openbook_minhash_signatures(
        b"".join(data), bounds.ctypes.data, len(data), entries.ctypes.data, len(entries), near.unit == "characters",
        near.shingle, a.ctypes.data, b.ctypes.data, near.permutations, out.ctypes.data,
    )  # fmt: skip
    if status:
        raise MemoryError("no memory for the shingles of a text")
    return out


def signatures_reference(texts: Iterable[str], near: Near) -> Signatures:
    """The same in numpy."""
    return sketch_reference([shingles(text, near) for text in texts], near)


def sketch(sets: Sequence[NDArray[np.uint32]], near: Near) -> Signatures:
    """The signatures of sets of hashes, whatever they are hashes of, [N,P]."""
    found = library()
    if found is None:
        return sketch_reference(sets, near)
    a, b = permutations(near.seed, near.permutations)
    hashes = np.concatenate([np.zeros(0, np.uint32), *sets])
    bounds = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    out = np.empty((len(sets), near.permutations), np.uint32)
    status = found.openbook_minhash_sketch(
        hashes.ctypes.data, bounds.ctypes.data, len(sets), a.ctypes.data, b.ctypes.data, near.permutations,
        out.ctypes.data,
    )  # fmt: skip
    if status:
        raise MemoryError("no memory for the hashes of a set")
    return out


def sketch_reference(sets: Sequence[NDArray[np.uint32]], near: Near) -> Signatures:
    """The same in numpy."""
    a, b = permutations(near.seed, near.permutations)
    rows = []
    for one in sets:
        row = np.full(near.permutations, EMPTY, np.uint32)
        hashes = np.unique(_spread(one))
        for at in range(0, len(hashes), 4096):
            row = np.minimum(row, (hashes[at : at + 4096, None] * a + b).min(0))
        rows.append(row)
    return np.array(rows, np.uint32).reshape(-1, near.permutations)


def _spread(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's finaliser for 32 bits."""
    hashes = (hashes ^ hashes >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ hashes >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return hashes ^ hashes >> np.uint32(16)


def estimate(signatures: Signatures, pairs: Ints) -> NDArray[np.float64]:
    """The Jaccard similarity of `pairs` [K,2] of documents, as their signatures estimate it, [K]."""
    agree = [np.zeros(0)]
    for at in range(0, len(pairs), BLOCK):
        left, right = pairs[at : at + BLOCK].T
        agree.append((signatures[left] == signatures[right]).mean(1))
    return np.concatenate(agree)


def jaccard(left: str, right: str, near: Near) -> float:
    """The similarity itself, of the sets of shingles of two texts; of two texts without a unit it is 0."""
    ours, theirs = np.unique(shingles(left, near)), np.unique(shingles(right, near))
    shared = len(np.intersect1d(ours, theirs, assume_unique=True))
    return shared / max(1, len(ours) + len(theirs) - shared)


# ----------------------------------------------------------------------------------------------------------- clusters


def clusters(
    signatures: Signatures, near: Near, texts: Sequence[str] | None = None, *, among: Ints | None = None
) -> Ints:
    """Of each document the smallest index of its cluster, [N]: itself where it is the first or alone.

    A cluster is what candidate pairs that pass connect. With `texts` a candidate passes by its real similarity and not
    by its estimate. `among`: the documents that take part, ascending; the others are alone.
    """
    if signatures.ndim != 2 or signatures.shape[1] != near.permutations:
        raise UsageError(f"signatures of {near.permutations} numbers were expected: got {signatures.shape}.")
    signatures = np.ascontiguousarray(signatures, np.uint32)  # no copy of what lies in a file
    parents = np.arange(len(signatures), dtype=np.int64)
    with _band_keys(signatures, near) as keys:
        full = _full(signatures)
        full = full if among is None else np.intersect1d(full, among, assume_unique=True)
        for band in keys:
            order = full[np.argsort(band[full], kind="stable")]
            if texts is None:
                join(band, order, signatures, near, parents)
            else:
                _join_by_text(band, order, signatures, near, texts, parents)
            release(signatures)
    return _flatten(parents)


class _band_keys:
    """The keys of all bands, [bands,N]: in memory, or in a file under TMPDIR that nobody else sees."""

    def __init__(self, signatures: Signatures, near: Near) -> None:
        self.file = tempfile.TemporaryFile() if len(signatures) * near.bands * 8 > IN_MEMORY else None  # noqa: SIM115
        shape = (near.bands, len(signatures))
        if self.file is not None and hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
            os.posix_fallocate(self.file.fileno(), 0, 8 * shape[0] * shape[1])
        self.keys: Hashes = np.memmap(self.file, np.uint64, "w+", 0, shape) if self.file else np.empty(shape, np.uint64)
        for at in range(0, len(signatures), BLOCK):
            band_keys(np.ascontiguousarray(signatures[at : at + BLOCK]), near, self.keys, at)

    def __enter__(self) -> Hashes:
        return self.keys

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def band_keys(block: Signatures, near: Near, keys: Hashes, at: int) -> None:
    """Write the keys of a block of signatures into `keys` [bands,N] from column `at` on."""
    found = library()
    if found is None:
        keys[:, at : at + len(block)] = band_keys_reference(block, near)
        return
    found.openbook_minhash_bands(
        block.ctypes.data, len(block), near.permutations, near.bands, near.rows,
        keys.ctypes.data, keys.shape[1], at,
    )  # fmt: skip


def band_keys_reference(block: Signatures, near: Near) -> Hashes:
    """The same in numpy."""
    values = block.reshape(len(block), near.bands, near.rows).astype(np.uint64)
    keys = np.zeros((len(block), near.bands), np.uint64)
    for row in range(near.rows):
        keys = mix(keys * np.uint64(UNIT) + values[:, :, row] + np.uint64(1))
    return keys.T


def _full(signatures: Signatures) -> Ints:
    """The documents that have a unit."""
    blocks = range(0, len(signatures), BLOCK)
    found = [np.flatnonzero((signatures[at : at + BLOCK] != EMPTY).any(1)) + at for at in blocks]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def join(keys: Hashes, order: Ints, signatures: Signatures, near: Near, parents: Ints) -> None:
    """Join what one band finds: `order` sorts its keys [N], equal ones by document; `parents` [N] is changed."""
    found = library()
    if found is None:
        join_reference(keys, order, signatures, near, parents)
        return
    keys = np.ascontiguousarray(keys)
    found.openbook_minhash_join(
        keys.ctypes.data, order.ctypes.data, len(order), signatures.ctypes.data, near.permutations,
        near.least, near.reach, parents.ctypes.data,
    )  # fmt: skip


def join_reference(keys: Hashes, order: Ints, signatures: Signatures, near: Near, parents: Ints) -> None:
    """The same in numpy."""
    for pairs in candidates(keys, order, near.reach):
        unite(parents, pairs[estimate(signatures, pairs) * near.permutations >= near.least - 0.5])


def candidates(keys: Hashes, order: Ints, reach: int) -> Iterator[Ints]:
    """The candidate pairs [K,2] of one band: of those with an equal key, each with the first and the `reach` before."""
    ranked = keys[order]
    begins = np.ones(len(order), bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    places = np.flatnonzero(~begins)
    yield np.stack([order[first[places]], order[places]], 1)
    for back in range(1, reach + 1):
        places = places[places - back > first[places]]
        if not len(places):
            return
        yield np.stack([order[places - back], order[places]], 1)


def _join_by_text(
    keys: Hashes, order: Ints, signatures: Signatures, near: Near, texts: Sequence[str], parents: Ints
) -> None:
    for pairs in candidates(keys, order, near.reach):
        # three standard deviations of the estimate: what is farther off is not worth reading
        unlike = estimate(signatures, pairs) < near.threshold - 1.5 / math.sqrt(near.permutations)
        for left, right in pairs[~unlike].tolist():
            if root(parents, left) != root(parents, right) and (
                jaccard(texts[left], texts[right], near) >= near.threshold
            ):
                unite(parents, np.array([[left, right]], np.int64))


def root(parents: Ints, place: int) -> int:
    """The smallest index of the cluster of `place`."""
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def unite(parents: Ints, pairs: Ints) -> None:
    """Join `pairs` [K,2]; a parent is never behind its child."""
    found = library()
    if found is not None:
        left, right = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        found.openbook_minhash_unite(parents.ctypes.data, left.ctypes.data, right.ctypes.data, len(pairs))
        return
    for one, other in pairs.tolist():
        roots = root(parents, one), root(parents, other)
        parents[max(roots)] = min(roots)


def _flatten(parents: Ints) -> Ints:
    while True:
        above = parents[parents]
        if np.array_equal(parents, above):
            return parents
        parents = above
