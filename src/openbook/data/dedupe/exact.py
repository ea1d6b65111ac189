"""Documents that are equal, or equal but for case, punctuation and white space: 128 bits of each are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from openbook.data.dedupe.words import Hashes, Ints, units


def digest(text: str, *, normalise: bool = True) -> tuple[int, int]:
    """128 bits of a text, as two numbers of 64. `normalise`: of its words alone, if it has any (see `words.py`)."""
    words = units(text).hashes if normalise else None
    # Of the words' hashes, not of the words: as certain as 64 bits a word, and without a normalised copy of the text.
    data = words.tobytes() if words is not None and len(words) else text.encode("utf-8", "surrogatepass")
    found = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little")


def digests(texts: Iterable[str], *, normalise: bool = True) -> Hashes:
    """The digests of `texts`, [N,2]."""
    return np.array([digest(text, normalise=normalise) for text in texts], np.uint64).reshape(-1, 2)


def first_of(digests: Hashes) -> Ints:
    """Of each document, [N,2], the first one that equals it, [N]: itself where there is none before it."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones in the order of the documents
    ranked = digests[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ranked[1:] != ranked[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first
