"""Which documents a training has read: from the row counter of its checkpoint and its prepared text, nothing else.

The rows that stood anywhere in a training are a pure function of their numbers, so what a run read up to a step needs
no log; it is worked out again. Piece by piece:

    rows of the training → rows of the layout → stretches of the sequence → pieces → documents of files

Symbols: P pieces, S stretches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook.data.loader import Loader, Reader
from openbook.data.packing import Ints
from openbook.data.shards import Shards
from openbook.errors import UsageError

ROWS = 1 << 16  # looked at together


@dataclass(frozen=True, slots=True)
class DocumentRead:
    """One document that was read, whole or in part."""

    path: str
    document: int  # in its file, from 0
    line: int  # where it begins there, from 1
    tokens: int  # read of it, those read twice counted twice
    times: float  # as a part of the document's tokens, held-out parts of it counted in


@dataclass(frozen=True)
class SourceRead:
    """What was read of one source."""

    shards: Shards
    rows: int
    epochs: float
    tokens: int
    pieces: Ints  # [P] which pieces were read, rising
    read: Ints  # [P] tokens read of each

    def documents(self) -> Iterator[DocumentRead]:
        """The documents these pieces are of, in the order of the text. Raises `DataError` for text without origins."""
        origins, counts = self.shards.origins(), self.shards.pieces["tokens"].astype(np.int64)
        document = _of_documents(origins)
        sizes = np.bincount(document, weights=counts)
        tokens = np.bincount(document[self.pieces], weights=self.read, minlength=len(sizes))
        first = np.searchsorted(document, np.arange(len(sizes)))
        files = [source["path"] for source in self.shards.manifest["sources"]]
        for number in np.unique(document[self.pieces]).tolist():
            at = origins[first[number]]
            path, read = files[int(at["file"])], int(tokens[number])
            yield DocumentRead(path, int(at["document"]), int(at["line"]), read, read / int(sizes[number]))


def read_by(reader: Reader, start: int, end: int) -> dict[str, SourceRead]:
    """What the rows `start` … `end-1` of the training read, by source: pieces, documents, tokens, epochs.

    A token that a row holds without predicting anything from it (the last of a stream) is not counted.
    """
    if not 0 <= start <= end:
        raise UsageError(f"Rows are from 0 on, the end not before the start: got {start} to {end}.")
    found = {}
    counted = {name: _Counts(loader) for name, loader in reader.parts().items()}
    for at in range(start, end, ROWS):
        turns, places = reader.turns(at, min(ROWS, end - at))
        for number, counts in enumerate(counted.values()):
            mine = places[turns == number]
            if len(mine):
                counts.add(int(mine[0]), len(mine))
    for name, counts in counted.items():
        read = counts.tokens()
        some = np.flatnonzero(read)
        found[name] = SourceRead(
            counts.loader.shards, counts.rows, counts.rows / counts.loader.rows, int(read.sum()),
            counts.pieces[some], read[some],
        )  # fmt: skip
    return found


class _Counts:
    """How often each stretch of one text was read."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.rows = loader, 0
        chosen = ~loader.shards.held()
        self.pieces: Ints = np.flatnonzero(chosen)  # those to train on; their tokens make up the sequence
        sizes = loader.shards.pieces["tokens"][self.pieces].astype(np.int64)
        self.bounds: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.times = np.zeros(loader.rows, np.int64)

    def add(self, place: int, rows: int) -> None:
        """Rows that the source has had, from its row `place` on."""
        self.rows += rows
        np.add.at(self.times, self.loader.numbers(place, rows), 1)

    def tokens(self) -> Ints:
        """Tokens read of each piece to train on, [P]."""
        numbers = np.flatnonzero(self.times)
        begins, ends, row = self.loader.layout.parts(numbers)
        times = self.times[row]
        return np.diff(_before(begins, times, self.bounds) - _before(ends, times, self.bounds))


def _before(edges: Ints, times: Ints, places: Ints) -> Ints:
    """Σ times · max(0, place - edge) over all edges, for each place."""
    order = np.argsort(edges, kind="stable")
    edges, times = edges[order], times[order]
    count = np.concatenate([np.zeros(1, np.int64), np.cumsum(times)])
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(times * edges)])
    passed = np.searchsorted(edges, places, side="right")
    return np.asarray(count[passed] * places - total[passed])


def _of_documents(origins: NDArray[np.void]) -> Ints:
    """The document of each piece, numbered through all files, [P]."""
    new = np.zeros(len(origins), np.int64)
    new[1:] = (origins["file"][1:] != origins["file"][:-1]) | (origins["document"][1:] != origins["document"][:-1])
    return np.cumsum(new)
