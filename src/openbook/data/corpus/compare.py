"""The stage between: marks of all parts → which documents and paragraphs stand there more than once.

The first of a kind stays, in the order of the sources: the source that is named first is the one that is preferred. In
memory is a digest for each document, and the hashes of one range of values; signatures and hashes lie in files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.data.corpus.marks import EQUAL, KEPT, NEAR, PARAGRAPHS, PASSAGES
from openbook.data.corpus.plan import Part
from openbook.data.corpus.recipe import Duplicates
from openbook.data.corpus.tally import place
from openbook.data.corpus.work import read_arrays, write_arrays
from openbook.data.dedupe.exact import first_of
from openbook.data.dedupe.near import clusters
from openbook.data.dedupe.repeats import NEVER, repeated
from openbook.data.documents import Document
from openbook.files import explain_os_error, read_json, write_json

FOUND = "found.json"

Fates = NDArray[np.uint8]


def compare(folder: Path, parts: Sequence[Part], wanted: Duplicates) -> dict[str, Any]:
    """Write the choice of every part; what was found, in numbers. Does nothing where that is done."""
    done = folder / "choice" / FOUND
    if done.exists():
        found: dict[str, Any] = read_json(done)
        return found
    marks = _Marks(folder, parts)
    fate = np.full(marks.documents, KEPT, np.uint8)
    of = np.arange(marks.documents)
    if wanted.exact:
        of = first_of(marks.gathered("exact", (2,), np.uint64))
        fate[of != np.arange(len(of))] = EQUAL
    largest = 0
    if wanted.near is not None:
        here = np.flatnonzero(fate == KEPT)
        with _file(
            folder / "choice" / "signatures.bin", (len(here), wanted.near.permutations), np.uint32
        ) as signatures:
            marks.gather("near", fate == KEPT, signatures)
            heads = clusters(signatures, wanted.near)
        later = heads != np.arange(len(heads))
        fate[here[later]], of[here[later]] = NEAR, here[heads[later]]
        largest = int(np.bincount(heads).max(initial=0))
    goes = {}
    for name, above in ((PARAGRAPHS, wanted.boilerplate or 0), (PASSAGES, 0)):
        if (wanted.paragraphs if name == PARAGRAPHS else wanted.overlap) is not None:
            goes[name] = _repeated(folder, marks, fate, name, above)
    _write(folder, marks, fate, of, goes)
    counts = {
        "documents": marks.documents, "bytes": marks.bytes, "equal documents": int((fate == EQUAL).sum()),
        "near duplicates": int((fate == NEAR).sum()), "largest cluster": largest,
        **{name: len(gone) for name, gone in goes.items()},
        **{f"repeated {name}": int(gone.sum()) for name, gone in goes.items()},
    }  # fmt: skip
    write_json(done, counts)
    return counts


class _Marks:
    """The marks of all parts, a part in memory at a time."""

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.paths = [folder / "clean" / f"{part.name}.npz" for part in parts]
        self.parts = parts
        self.counts = []
        self.bytes = 0
        for path in self.paths:
            sizes = read_arrays(path)["bytes"]
            self.counts.append(len(sizes))
            self.bytes += int(sizes.sum())
        self.documents = sum(self.counts)

    def each(self, name: str) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Where a part's documents stand among all, and its array."""
        at = 0
        for path, count in zip(self.paths, self.counts, strict=True):
            yield slice(at, at + count), read_arrays(path)[name]
            at += count

    def gathered(self, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """One array of all documents."""
        whole: NDArray[Any] = np.empty((self.documents, *shape), dtype)
        for here, array in self.each(name):
            whole[here] = array
        return whole

    def gather(self, name: str, chosen: NDArray[np.bool_], into: NDArray[Any]) -> None:
        """The rows of the chosen documents."""
        at = 0
        for here, array in self.each(name):
            rows = array[chosen[here]]
            into[at : at + len(rows)] = rows
            at += len(rows)


def _repeated(folder: Path, marks: _Marks, fate: Fates, name: str, above: int) -> NDArray[np.bool_]:
    """Which paragraphs or passages of all documents go; those of documents that go themselves do not count."""
    counts = marks.gathered(f"{name} of each", (), np.int64)
    total = int(counts.sum())
    with _file(folder / "choice" / "hashes.bin", (total,), np.uint64) as hashes:
        at = 0
        for here, array in marks.each(name):
            gone = np.repeat(fate[here] != KEPT, counts[here])
            hashes[at : at + len(array)] = np.where(gone, np.uint64(NEVER), array)
            at += len(array)
        return repeated(hashes, above=above)


def _write(
    folder: Path, marks: _Marks, fate: Fates, of: NDArray[np.int64], goes: Mapping[str, NDArray[np.bool_]]
) -> None:
    """The choice of every part; the place of the document that is kept, where another goes for it."""
    stands = marks.gathered("places", (2,), np.int64)
    begins = np.cumsum([0, *marks.counts])
    at = dict.fromkeys(goes, 0)
    for number, part in enumerate(marks.parts):
        here = slice(int(begins[number]), int(begins[number + 1]))
        places = []
        for one, kept in zip(fate[here].tolist(), of[here].tolist(), strict=True):
            owner = int(np.searchsorted(begins, kept, side="right")) - 1
            line, byte = stands[kept].tolist()
            where = Document("", marks.parts[owner].block.path, line, 0, at=byte)
            places.append("" if one == KEPT else place(where))
        choice: dict[str, NDArray[Any]] = {"fate": fate[here], "of": np.array(places, np.str_)}
        known = read_arrays(marks.paths[number])
        for name, gone in goes.items():
            counts = known[f"{name} of each"]
            choice |= {name: gone[at[name] : at[name] + int(counts.sum())], f"{name} of each": counts}
            at[name] += int(counts.sum())
        write_arrays(folder / "choice" / f"{part.name}.npz", choice)


@contextmanager
def _file(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[NDArray[Any]]:
    """An array in a file that is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not all(shape):
        yield np.empty(shape, dtype)
        return
    try:
        yield _mapped(path, shape, dtype)
    finally:
        path.unlink(missing_ok=True)


def _mapped(path: Path, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """A new file as an array. Its place is taken at once: a full disk is an error here, and not a crash later."""
    try:
        with path.open("w+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
            return np.memmap(file, dtype, "w+", 0, shape)
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
