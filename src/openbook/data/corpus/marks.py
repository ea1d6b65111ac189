"""What is kept of a document to compare it with all others, and what comparing decided about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.data.corpus.recipe import Duplicates
from openbook.data.corpus.tally import Tally, size
from openbook.data.dedupe import spans
from openbook.data.dedupe.exact import digests
from openbook.data.dedupe.near import signatures
from openbook.data.dedupe.overlap import Overlap, covered, windows
from openbook.data.dedupe.paragraphs import paragraph_hashes, parts
from openbook.data.dedupe.words import Hashes, Ints, units
from openbook.data.documents import Document

KEPT, EQUAL, NEAR = 0, 1, 2  # what becomes of a document
STEPS = {EQUAL: "equal documents", NEAR: "near duplicates"}
PARAGRAPHS, PASSAGES = "paragraphs", "passages"  # what hashes are of

COUNTED = (PARAGRAPHS, PASSAGES)

Arrays = Mapping[str, NDArray[Any]]


class Marker:
    """The marks of one part's documents, in order.

    bytes [N]    places [N,2]: line and byte    exact [N,2]    near [N,P]
    paragraphs, passages: hashes of all documents, and `… of each` [N], how many each has
    """

    def __init__(self, wanted: Duplicates) -> None:
        self.wanted = wanted
        self.parts: list[dict[str, NDArray[Any]]] = [self._marks([])]

    def add(self, documents: Sequence[Document]) -> None:
        """More documents."""
        self.parts.append(self._marks(documents))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All marks so far."""
        return {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}

    def _marks(self, documents: Sequence[Document]) -> dict[str, NDArray[Any]]:
        texts = [document.text for document in documents]
        made: dict[str, NDArray[Any]] = {
            "bytes": np.array([size(text) for text in texts], np.int64),
            "places": np.array([[document.line, document.at] for document in documents], np.int64).reshape(-1, 2),
        }
        if self.wanted.exact:
            made["exact"] = digests(texts)
        if self.wanted.near is not None:
            made["near"] = signatures(texts, self.wanted.near)
        if (least := self.wanted.paragraphs) is not None:
            made |= _counted(PARAGRAPHS, [paragraph_hashes(text, least) for text in texts])
        if (overlap := self.wanted.overlap) is not None:
            made |= _counted(PASSAGES, [windows(units(text), overlap)[0] for text in texts])
        return made


def _counted(name: str, hashes: Sequence[Hashes]) -> dict[str, NDArray[Any]]:
    """Hashes of several documents one after the other, and how many of them each has."""
    counts = np.array([len(one) for one in hashes], np.int64)
    return {name: np.concatenate([np.zeros(0, np.uint64), *hashes]), f"{name} of each": counts}


class Chooser:
    """What comparing decided about one part's documents, in order.

    fate [N]    of [N]: where the one stands that is kept instead
    paragraphs, passages: which of their hashes stand elsewhere before; `… of each` [N], how many each has
    """

    def __init__(self, choice: Arrays, overlap: Overlap | None) -> None:
        self.fate, self.of, self.overlap = choice["fate"], choice["of"], overlap
        self.goes = {name: _Rows(choice[name], choice[f"{name} of each"]) for name in COUNTED if name in choice}

    def __call__(self, row: int, document: Document, tally: Callable[[str], Tally]) -> Document | None:
        """What is left of a document, told to the tallies of the steps that it came to."""
        fate = int(self.fate[row])
        for number, step in STEPS.items():
            tally(step).came(document)
            if fate == number:
                tally(step).remove(document, "", f"kept: {self.of[row]}")
                return None
        whole, gone = document.text, np.zeros((0, 2), np.int64)
        for name, rows in self.goes.items():
            mine = tally(f"repeated {name}")
            mine.came(document)
            found, shortest = self._parts(name, rows[row], whole)
            if not len(found):
                continue
            gone = np.concatenate([gone, found])
            left = spans.without(whole, gone, shortest)
            if not left.strip():
                mine.remove(document, "", "it stands elsewhere before")
                return None
            if left != document.text:
                changed = replace(document, text=left)
                mine.change(document, changed)
                document = changed
        return document

    def _parts(self, name: str, goes: NDArray[np.bool_], text: str) -> tuple[Ints, int]:
        """The parts of a text that go, and the length from which on what is left between them stays."""
        if not goes.any():
            return np.zeros((0, 2), np.int64), 1
        if name == PARAGRAPHS:
            return parts(text, goes), 1
        assert self.overlap is not None
        found = units(text)
        repeats, share = covered(text, found, windows(found, self.overlap)[1][goes], self.overlap)
        everything = np.array([[0, len(text)]], np.int64)
        return everything if share >= self.overlap.share else repeats, self.overlap.shortest


class _Rows:
    """Values of several documents one after the other, by document."""

    def __init__(self, values: NDArray[np.bool_], counts: Ints) -> None:
        self.values = values
        self.bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def __getitem__(self, row: int) -> NDArray[np.bool_]:
        return self.values[self.bounds[row] : self.bounds[row + 1]]
