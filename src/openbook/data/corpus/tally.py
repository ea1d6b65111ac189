"""What every step did to every source: counts, and samples of what it changed and removed.

A ledger of one block and a ledger of another add up, in any order and in any grouping, to the ledger of both; the
samples too, because they are those with the lowest hashes. So one process and a hundred machines report the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from openbook.data.documents import Document

KEPT = 4  # samples of each kind
SHOWN = 600  # characters of a sample


@dataclass(frozen=True, slots=True, order=True)
class Sample:
    """A document that a step changed or removed, as far as it is shown."""

    key: str  # the hash that chose it
    place: str  # as `place` says it
    text: str
    after: str = ""  # what the step made of it, when it was kept
    detail: str = ""


@dataclass(slots=True)
class Kind:
    """Documents that one step treated in one way."""

    documents: int = 0
    bytes: int = 0  # that went, of their text
    samples: list[Sample] = field(default_factory=list)

    def add(self, documents: int, size: int, samples: Iterable[Sample]) -> None:
        """Count more of this kind."""
        self.documents += documents
        self.bytes += size
        self.samples = sorted({*self.samples, *samples})[:KEPT]


@dataclass(slots=True)
class Tally:
    """One step on one source. `removed` and `changed` are by reason."""

    documents: int = 0  # that came to it
    bytes: int = 0
    removed: dict[str, Kind] = field(default_factory=dict)
    changed: dict[str, Kind] = field(default_factory=dict)

    def came(self, document: Document) -> None:
        """A document came."""
        self.documents += 1
        self.bytes += size(document.text)

    def remove(self, document: Document, reason: str, detail: str = "") -> None:
        """It went, whole."""
        sample = [Sample(_key(document), place(document), document.text[:SHOWN], detail=detail)]
        self.removed.setdefault(reason, Kind()).add(1, size(document.text), sample)

    def change(self, before: Document, after: Document, reason: str = "") -> None:
        """It was kept with another text."""
        old, new = difference(before.text, after.text)
        lost = size(before.text) - size(after.text)
        self.changed.setdefault(reason, Kind()).add(1, lost, [Sample(_key(before), place(before), old, after=new)])

    def merge(self, other: Tally) -> None:
        """Add what another block saw."""
        self.documents += other.documents
        self.bytes += other.bytes
        for mine, theirs in ((self.removed, other.removed), (self.changed, other.changed)):
            for reason, kind in theirs.items():
                mine.setdefault(reason, Kind()).add(kind.documents, kind.bytes, kind.samples)


class Ledger:
    """Tallies by source and step; sources and steps stand in the order in which they first came."""

    def __init__(self) -> None:
        self.tallies: dict[str, dict[str, Tally]] = {}

    def tally(self, source: str, step: str) -> Tally:
        """The tally of a step on a source, begun if it is new."""
        return self.tallies.setdefault(source, {}).setdefault(step, Tally())

    def merge(self, other: Ledger) -> None:
        """Add another ledger."""
        for source, steps in other.tallies.items():
            for step, tally in steps.items():
                self.tally(source, step).merge(tally)

    def over_sources(self) -> dict[str, Tally]:
        """By step alone."""
        total = Ledger()
        for steps in self.tallies.values():
            for step, tally in steps.items():
                total.tally("", step).merge(tally)
        return total.tallies.get("", {})

    def to_tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            source: {step: asdict(tally) for step, tally in steps.items()} for source, steps in self.tallies.items()
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Ledger:
        """The inverse of `to_tree`."""
        ledger = cls()
        for source, steps in tree.items():
            for step, value in steps.items():
                tally = ledger.tally(source, step)
                tally.documents, tally.bytes = value["documents"], value["bytes"]
                for mine, theirs in ((tally.removed, value["removed"]), (tally.changed, value["changed"])):
                    for reason, kind in theirs.items():
                        samples = [Sample(**sample) for sample in kind["samples"]]
                        mine[reason] = Kind(kind["documents"], kind["bytes"], samples)
        return ledger


def size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def place(document: Document) -> str:
    """Where a document came from, for people: FILE:LINE, or FILE@BYTE where a block begins within the file."""
    return f"{document.path}:{document.line}" if document.line else f"{document.path}@{document.at}"


def difference(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place where they differ."""
    short = min(len(before), len(after))
    low, high = 0, short
    while low < high:  # the longest common beginning
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[low:middle] == after[low:middle] else (low, middle - 1)
    start = max(0, low - SHOWN // 4)
    return before[start : start + SHOWN], after[start : start + SHOWN]


def _key(document: Document) -> str:
    return hashlib.blake2b(f"{place(document)}\0{document.text[:4096]}".encode(), digest_size=8).hexdigest()
