"""Which parts of a text stand in others, word for word: what two documents of very different length share.

A window of `words` words is repeated if an equal one stands in an earlier document; the words that repeated windows
cover are the repeated part of a document. (What a document repeats of itself, a refrain or a letter quoted again, is
its own affair.) With `every` = w > 1 only some windows are kept, of every w neighbours at least that
with the least hash (winnowing: Schleimer, Wilkerson, Aiken 2003): 2 / (w + 1) of the memory; a repetition of
`words` + w - 1 words or more is still found, short of up to w - 1 words at each of its ends.

Exact substrings of 50 tokens and more are what Lee et al. 2022 (*Deduplicating training data makes language models
better*, section 4.1) remove, with a suffix array of the corpus; here it takes 8 bytes for a window, in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook.data.dedupe import spans
from openbook.data.dedupe.lookup import Lookup
from openbook.data.dedupe.repeats import NEVER
from openbook.data.dedupe.repeats import repeated as repeated
from openbook.data.dedupe.words import Hashes, Ints, Units, ngrams, units
from openbook.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What is a repetition, and what becomes of it."""

    words: int = 50  # of a window: nothing shorter is found
    every: int = 1  # winnowing: of so many neighbouring windows one is kept
    share: float = 0.8  # a document goes as a whole if this part of its words is repeated
    shortest: int = 100  # characters: what is left between repetitions and is shorter goes too

    def __post_init__(self) -> None:
        for name in ("words", "every"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"`{name}` is at least 1: got {value}.")
        if not 0 < self.share <= 1:
            raise UsageError(f"`share` is a part above 0, up to 1: got {self.share}.")


def winnow(hashes: Hashes, every: int) -> Ints:
    """The places of the hashes that are the least, the first of equals, among some `every` neighbours, ascending."""
    if every == 1 or len(hashes) <= every:
        return np.arange(len(hashes)) if every == 1 else np.argmin(hashes, keepdims=True) if len(hashes) else _NONE
    rows = np.lib.stride_tricks.sliding_window_view(hashes, every)
    kept = np.zeros(len(hashes), bool)
    for at in range(0, len(rows), 1 << 16):
        block = rows[at : at + (1 << 16)]
        kept[block.argmin(1) + np.arange(at, at + len(block))] = True
    return np.flatnonzero(kept)


_NONE = np.zeros(0, np.int64)


def windows(found: Units, overlap: Overlap) -> tuple[Hashes, Ints]:
    """The hashes of a text's windows that are kept, and their first words, [W] each.

    Of equal windows of one text all but the first have the hash `NEVER`.
    """
    hashes = ngrams(found.hashes, overlap.words)
    places = winnow(hashes, overlap.every)
    kept = hashes[places]
    later = np.ones(len(kept), bool)
    later[np.unique(kept, return_index=True)[1]] = False
    kept[later] = NEVER
    return kept, places


def covered(text: str, found: Units, places: Ints, overlap: Overlap) -> tuple[Ints, float]:
    """The parts of `text` (characters, [K,2]) under the windows that begin at the words `places` and under all that
    equal them; their share of the words."""
    if len(places):
        hashes = ngrams(found.hashes, overlap.words)
        places = np.flatnonzero(np.isin(hashes, hashes[places]))
    runs = spans.merge(places, places + overlap.words)
    share = int((runs[:, 1] - runs[:, 0]).sum()) / max(1, len(found))
    return spans.of_windows(places, overlap.words, found, text), share


class Within:
    """What part of each of some texts, kept in memory (16 bytes a word), stands in a corpus that is read once.

    within = Within(texts, Overlap(words=20))
    for text in corpus: within.look(text)
    parts, share = within.parts(0)
    """

    def __init__(self, texts: Sequence[str], overlap: Overlap) -> None:
        self.texts, self.overlap = texts, overlap
        kept = [windows(units(text), overlap) for text in texts]
        hashes, self._number = np.unique(
            np.concatenate([h for h, _ in kept] or [_NONE.astype(np.uint64)]), return_inverse=True
        )
        self._places = [places for _, places in kept]
        self._bounds = np.cumsum([0, *map(len, self._places)])
        self._lookup = Lookup(hashes, [overlap.words])
        self.seen: NDArray[np.bool_] = np.zeros(len(hashes), bool)

    def look(self, text: str) -> None:
        """Read a document of the corpus."""
        self.seen[self._lookup.search(units(text).hashes)[2]] = True

    def look_all(self, texts: Iterable[str]) -> Within:
        """Read a corpus."""
        for text in texts:
            self.look(text)
        return self

    def parts(self, number: int) -> tuple[Ints, float]:
        """The parts of a text that the corpus has, and their share of its words."""
        hit = self.seen[self._number[self._bounds[number] : self._bounds[number + 1]]]
        text = self.texts[number]
        return covered(text, units(text), self._places[number][hit], self.overlap)
