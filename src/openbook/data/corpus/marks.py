"""What is kept of a document to compare it with all others, and what comparing decided about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.data.corpus.recipe import Duplicates
from openbook.data.corpus.tally import Tally, size
from openbook.data.dedupe.exact import digests
from openbook.data.dedupe.near import signatures
from openbook.data.dedupe.paragraphs import paragraph_hashes, without
from openbook.data.documents import Document

KEPT, EQUAL, NEAR = 0, 1, 2  # what becomes of a document
STEPS = {EQUAL: "equal documents", NEAR: "near duplicates"}
PARAGRAPHS = "repeated paragraphs"

Arrays = Mapping[str, NDArray[Any]]


class Marker:
    """The marks of one part's documents, in order.

    bytes, lines [N]    exact [N,2]    near [N,P]    paragraphs [N]: how many hashes of each    hashes [sum of those]
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
            "lines": np.array([document.line for document in documents], np.int64),
        }
        if self.wanted.exact:
            made["exact"] = digests(texts)
        if self.wanted.near is not None:
            made["near"] = signatures(texts, self.wanted.near)
        if (least := self.wanted.paragraphs) is not None:
            hashes = [paragraph_hashes(text, least) for text in texts]
            made["paragraphs"] = np.array([len(one) for one in hashes], np.int64)
            made["hashes"] = np.concatenate([np.zeros(0, np.uint64), *hashes])
        return made


class Chooser:
    """What comparing decided about one part's documents, in order.

    fate [N]    of [N]: where the one stands that is kept instead    goes [sum of paragraphs]: which of them
    """

    def __init__(self, choice: Arrays) -> None:
        self.fate, self.of = choice["fate"], choice["of"]
        self.goes = choice.get("goes")
        ends = np.cumsum(choice["paragraphs"]) if self.goes is not None else np.zeros(0, np.int64)
        self.bounds = np.concatenate([np.zeros(1, np.int64), ends])

    def __call__(self, row: int, document: Document, tally: Callable[[str], Tally]) -> Document | None:
        """What is left of a document, told to the tallies of the steps that it came to."""
        fate = int(self.fate[row])
        for number, step in STEPS.items():
            tally(step).came(document)
            if fate == number:
                tally(step).remove(document, "", f"kept: {self.of[row]}")
                return None
        if self.goes is None:
            return document
        repeated = tally(PARAGRAPHS)
        repeated.came(document)
        goes = self.goes[self.bounds[row] : self.bounds[row + 1]]
        if not goes.any():
            return document
        left = without(document.text, goes)
        if not left.strip():
            repeated.remove(document, "every paragraph stands elsewhere before")
            return None
        changed = replace(document, text=left)
        repeated.change(document, changed)
        return changed
