"""Evaluation text in the corpus: an index of the sets, how many documents have each run of words, and what was cut.

The index is made once, before anything is read. While documents are cleaned it is counted how many have each of its
runs of words; what many have is a saying. Only when the corpus is written are the rest taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.data.corpus.plan import Part
from openbook.data.corpus.recipe import Contamination, Corpus
from openbook.data.corpus.tally import Tally
from openbook.data.corpus.work import read_arrays, write_arrays
from openbook.data.dedupe.contamination import Decontaminate, Index, Overlaps
from openbook.data.dedupe.evaluation import evaluations
from openbook.data.documents import Document
from openbook.data.steps import Removed

FOLDER, SAYINGS = "evaluation", "sayings.npz"
STEP = "decontaminate"
Made = tuple[int, int]
EXAMPLES = 50  # shared parts of one part of the corpus that are shown


def prepare_index(folder: Path, recipe: Corpus) -> None:
    """The index of the recipe's evaluation sets, if it names some."""
    wanted, place = recipe.contamination, folder / FOLDER
    if not wanted.against or (place / "index.json").exists():
        return
    sets = evaluations(recipe.evaluation())
    Index.build(sets, place, n=wanted.words, shortest=wanted.shortest, common=wanted.common, fields=wanted.fields)


def opened(folder: Path) -> Index | None:
    """The index, opened once in a process; None where no sets were named."""
    made = _made(folder / FOLDER / "index.json")
    return _index(folder, made) if made is not None else None


@lru_cache(maxsize=2)
def _index(folder: Path, _file: Made) -> Index:
    return Index(folder / FOLDER)


def _made(path: Path) -> Made | None:
    """Which file this is: another corpus may have had the same folder, in the same process. None: there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


class Counter:
    """In how many documents of a part each run of words of the index stands."""

    def __init__(self, folder: Path) -> None:
        self.index = opened(folder)
        self.runs = [np.zeros(0, np.int64)]

    def add(self, documents: Sequence[Document]) -> None:
        """More documents."""
        if self.index is not None:
            self.runs += [self.index.grams(document.text) for document in documents]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Runs that were found, and their documents."""
        runs, counts = np.unique(np.concatenate(self.runs), return_counts=True)
        return {"runs": runs, "runs in documents": counts}


def count_sayings(folder: Path, parts: Sequence[Part], wanted: Contamination) -> None:
    """Write down which runs of words more documents have than evaluation text would be in."""
    index = opened(folder)
    if index is None or (folder / FOLDER / SAYINGS).exists():
        return
    counts = np.zeros(len(index), np.int64)
    for part in parts:
        marks = read_arrays(folder / "clean" / f"{part.name}.npz")
        counts[marks["runs"]] += marks["runs in documents"]
    write_arrays(folder / FOLDER / SAYINGS, {"sayings": counts > wanted.ignore})


class Cutter:
    """Takes evaluation text out of the documents of one part, and keeps what was found."""

    def __init__(self, folder: Path, wanted: Contamination) -> None:
        sayings = _made(folder / FOLDER / SAYINGS)
        self.step = _step(folder, wanted, sayings) if sayings is not None else None
        self.overlaps = Overlaps(self.step.index, EXAMPLES) if self.step is not None else None

    def __call__(self, document: Document, tallies: Callable[[str], Tally]) -> Document | None:
        """What is left of a document."""
        if self.step is None or self.overlaps is None:
            return document
        tally = tallies(STEP)
        tally.came(document)
        found = self.step.index.find(document.text)
        self.overlaps.add(document, found)
        result = self.step.apply(document, found)
        if isinstance(result, Removed):
            tally.remove(document, result.reason, result.detail)
            return None
        if result is not document:
            tally.change(document, result)
        return result

    def notes(self) -> dict[str, Any]:
        """For the ledger of the part."""
        if self.overlaps is None:
            return {}
        return {"overlaps": {"items": sorted(self.overlaps.items), "parts": self.overlaps.parts}}


@lru_cache(maxsize=2)
def _step(folder: Path, wanted: Contamination, _file: Made) -> Decontaminate | None:
    index = opened(folder)
    if index is None:
        return None
    sayings = read_arrays(folder / FOLDER / SAYINGS)["sayings"]
    return Decontaminate(index.ignore(sayings), wanted.action, wanted.margin, most=wanted.most)


def summed(folder: Path, items: Set[int], parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What was found in all parts: the items, and some of the places. None where no evaluation sets were named."""
    index = opened(folder)
    if index is None:
        return None
    overlaps = Overlaps(index, examples=0, items={*items})
    return {"words": index.n, "sets": overlaps.sets(), "samples": [*parts]}
