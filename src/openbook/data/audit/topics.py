"""Topics that nobody listed: documents grouped by the words they share, each group named by its own words.

    word counts → tf-idf, each document of length 1 → spherical k-means (Dhillon & Modha 2001)

with tf = 1 + ln(count), idf = ln((1+D)/(1+df)) + 1, and beginnings far from each other (Arthur & Vassilvitskii 2007).
Symbols: D documents, V words, K topics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORDS = 3000  # words that count, the most frequent that are not everywhere
ROUNDS, STARTS = 25, 5

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Topic:
    """A group of documents."""

    words: tuple[str, ...]  # that tell it from the others, the strongest first
    share: float  # of the documents


def find_topics(documents: Sequence[Sequence[str]], topics: int, *, seed: int = 0, shown: int = 8) -> list[Topic]:
    """At most `topics` groups of documents (lists of words), the largest first."""
    vocabulary = _vocabulary(documents)
    vectors = _vectors(documents, vocabulary)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    if not len(vectors):
        return []
    random = np.random.default_rng(seed)
    tries = [_cluster(vectors, min(topics, len(vectors)), random) for _ in range(STARTS)]
    groups = max(tries, key=lambda made: made[1])[0]
    middle = vectors.mean(axis=0)
    found = []
    for group in np.unique(groups):
        mine = vectors[groups == group]
        strongest = np.argsort(middle - mine.mean(axis=0), kind="stable")[:shown]
        found.append(Topic(tuple(vocabulary[n] for n in strongest), len(mine) / len(documents)))
    return sorted(found, key=lambda topic: (-topic.share, topic.words))


def _vocabulary(documents: Sequence[Sequence[str]]) -> list[str]:
    """Words of three documents at least and of a third of them at most."""
    among: Counter[str] = Counter()
    for words in documents:
        among.update(set(words))
    fit = [(-count, word) for word, count in among.items() if count >= 3 and 3 * count <= max(9, len(documents))]
    return [word for _, word in sorted(fit)[:WORDS]]


def _vectors(documents: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Floats:
    """tf-idf, [D,V], rows of length 1 (0 where a document has none of the words)."""
    number = {word: at for at, word in enumerate(vocabulary)}
    found = np.zeros((len(documents), len(vocabulary)), np.float32)
    for row, words in enumerate(documents):
        for word, count in Counter(words).items():
            if word in number:
                found[row, number[word]] = 1 + np.log(count)
    among = (found > 0).sum(axis=0)
    found *= np.log((1 + len(documents)) / (1 + among)) + 1
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9), np.float32)


def _cluster(vectors: Floats, topics: int, random: np.random.Generator) -> tuple[NDArray[np.int64], float]:
    """The group of each document, [D], and how near they are to the middles of their groups."""
    chosen = [int(random.integers(len(vectors)))]
    distance = np.full(len(vectors), np.inf)
    while len(chosen) < topics:
        distance = np.minimum(distance, np.maximum(0, 1 - vectors @ vectors[chosen[-1]]))
        if not distance.sum() > 0:
            break
        chosen.append(int(random.choice(len(vectors), p=distance / distance.sum())))
    centres, groups = vectors[chosen], np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        nearest = np.argmax(vectors @ centres.T, axis=1)
        if np.array_equal(nearest, groups):
            break
        groups = nearest
        for group in np.unique(groups):
            centre = vectors[groups == group].sum(axis=0)
            centres[group] = centre / max(float(np.linalg.norm(centre)), 1e-9)
    return groups, float((vectors @ centres.T).max(axis=1).sum())
