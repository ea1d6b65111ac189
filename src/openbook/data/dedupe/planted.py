"""Near copies of real documents with a known truth: how well duplicates are found, measured.

texts ──one to three copies of some of them, each changed in one of the ways of `CHANGES`──▶ Planted ──score──▶
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from openbook.data.dedupe.words import Ints

NOTICES = (
    "All rights reserved. No part of this page may be copied without the written permission of the publisher.",
    "Share this article with your friends! Sign up for our newsletter to get the best stories every morning.",
    "This text was made available by volunteers. Please report errors to the address at the end of the page.",
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
Change = Callable[[str, random.Random], str]


@dataclass(frozen=True, slots=True)
class Planted:
    """Documents in a random order, of which some are copies."""

    texts: list[str]
    origins: Ints  # [N] which original each is or was made of
    changes: list[str]  # how it was changed; nothing for an original


@dataclass(frozen=True, slots=True)
class Score:
    """Of removal: all but the first document of a cluster go."""

    precision: float  # the part of removed documents that are a copy of one that stays, or an original that has one
    recall: float  # the part of those that should go that went
    removed: int
    by_change: Mapping[str, float]  # of the copies of each kind the part that is in the cluster of its original


def _edit(share: float) -> Change:
    """Another word of the same text in place of `share` of the words."""

    def change(text: str, draw: random.Random) -> str:
        words = text.split(" ")
        for place in draw.sample(range(len(words)), round(share * len(words))):
            words[place] = draw.choice(words)
        return " ".join(words)

    return change


def _delete(text: str, draw: random.Random) -> str:
    """One run of 5 to 15 % of the words goes."""
    words = text.split(" ")
    count = max(1, round(len(words) * draw.uniform(0.05, 0.15)))
    start = draw.randrange(max(1, len(words) - count))
    return " ".join(words[:start] + words[start + count :])


def _scatter(text: str, draw: random.Random) -> str:
    """3 % of the words go, here and there."""
    return " ".join(word for word in text.split(" ") if draw.random() >= 0.03)


def _insert(text: str, draw: random.Random) -> str:
    """A notice before and behind."""
    return f"{draw.choice(NOTICES)}\n\n{text}\n\n{draw.choice(NOTICES)}"


def _reorder(text: str, draw: random.Random) -> str:
    """The sentences in another order: of every four neighbours two change places."""
    sentences = _SENTENCE.split(text)
    for at in range(0, len(sentences) - 3, 4):
        one, other = draw.sample(range(at, at + 4), 2)
        sentences[one], sentences[other] = sentences[other], sentences[one]
    return " ".join(sentences)


def _dress(text: str, draw: random.Random) -> str:
    """Other case, punctuation and white space."""
    text = text.upper() if draw.random() < 0.5 else text.lower()
    return re.sub(r"\s+", "  ", re.sub(r"[.,;]", "", text))


CHANGES: Mapping[str, Change] = MappingProxyType({
    "2 % of the words": _edit(0.02), "5 % of the words": _edit(0.05), "a part deleted": _delete,
    "words deleted": _scatter, "a notice added": _insert, "sentences reordered": _reorder, "other case": _dress,
})  # fmt: skip


def plant(texts: Sequence[str], *, seed: int = 0, share: float = 0.5) -> Planted:
    """`texts`, a `share` of them with one to three changed copies, shuffled."""
    draw = random.Random(seed)
    made = [(text, number, "") for number, text in enumerate(texts)]
    for number, text in enumerate(texts):
        if draw.random() < share:
            for name in draw.sample(sorted(CHANGES), draw.randint(1, 3)):
                made.append((CHANGES[name](text, draw), number, name))
    draw.shuffle(made)
    return Planted([m[0] for m in made], np.array([m[1] for m in made], np.int64), [m[2] for m in made])


def score(planted: Planted, clusters: Ints) -> Score:
    """How well `clusters` [N] (the first document of each one's cluster) are the planted ones."""
    _, first, copies = np.unique(planted.origins, return_index=True, return_inverse=True)
    should = first[copies] != np.arange(len(copies))
    goes = clusters != np.arange(len(clusters))
    right = goes & (planted.origins[clusters] == planted.origins)
    originals = {int(origin): i for i, origin in enumerate(planted.origins) if not planted.changes[i]}
    by_change = {}
    for name in CHANGES:
        of_kind = [i for i, change in enumerate(planted.changes) if change == name]
        found = [clusters[i] == clusters[originals[int(planted.origins[i])]] for i in of_kind]
        by_change[name] = float(np.mean(found)) if found else 1.0
    recall = float((right & should).sum() / max(1, should.sum()))
    return Score(float(right.sum() / max(1, goes.sum())), recall, int(goes.sum()), by_change)
