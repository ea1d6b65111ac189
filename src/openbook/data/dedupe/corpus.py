"""A corpus without its duplicates: measured, judged, written, with a report of what went and of what it was like.

    read ──digests, signatures, hashes of paragraphs and of windows──▶ columns in files ──▶ what goes
    read again ──▶ OUT/documents.jsonl, OUT/report.json

The first of equals stays, in the order of the corpus; a document that goes repeats nothing. Memory: about 60 bytes a
document; everything else lies in files beside the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openbook.data.dedupe import spans
from openbook.data.dedupe.column import Column
from openbook.data.dedupe.exact import digest, first_of
from openbook.data.dedupe.near import Near, clusters, estimate, signatures
from openbook.data.dedupe.overlap import Overlap, covered, windows
from openbook.data.dedupe.paragraphs import paragraph_hashes, parts
from openbook.data.dedupe.repeats import NEVER, repeated
from openbook.data.dedupe.words import Hashes, Ints, units
from openbook.data.documents import Bad, Document, find_files, read_documents
from openbook.errors import DataError, UsageError
from openbook.files import atomic_folder, write_json

TOGETHER = 1 << 22  # characters whose signatures are made at once
SAMPLES = 50  # of each rule
SHOWN = 200  # characters of a sample
LISTED = 1000  # of what could not be read
STAYS = -1
TEXT, REPORT = "documents.jsonl", "report.json"  # of a result
PARTS = ("paragraphs", "overlap")  # rules that take parts of documents


@dataclass(frozen=True, kw_only=True)
class Paragraphs:
    """Which paragraphs are compared, and what goes."""

    minimum_words: int = 12  # shorter ones stay
    above: int = 0  # 0: all but the first go; else all of those that stand more often than this in the corpus
    by: str = "paragraphs"  # or "lines"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is done; None: not done."""

    exact: bool = True
    near: Near | None = field(default_factory=Near)
    paragraphs: Paragraphs | None = None
    overlap: Overlap | None = None


@dataclass
class Report:
    """What went, by rule, and samples of it."""

    documents: int = 0
    characters: int = 0
    kept: int = 0
    kept_characters: int = 0
    removed: dict[str, int] = field(default_factory=dict)  # rule → documents
    cut: dict[str, int] = field(default_factory=dict)  # rule → characters of documents that stay
    sources: dict[str, dict[str, int]] = field(default_factory=dict)  # file → documents, kept, characters …
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # what could not be read, and why

    def as_text(self) -> str:
        """The table that the command prints."""
        share = self.kept_characters / max(1, self.characters)
        lines = [f"{self.kept:,} of {self.documents:,} documents stay, with {share:.2%} of the characters"]
        lines += [f"  {rule:<11}{count:>10,} documents" for rule, count in self.removed.items()]
        lines += [f"  {rule:<11}{count:>10,} characters of documents that stay" for rule, count in self.cut.items()]
        lines += [f"  {len(self.unread):,} could not be read: {self.unread[0]}"] if self.unread else []
        return "\n".join(lines)


class Read(Protocol):
    """Gives the documents of a corpus from the beginning, the same ones each time."""

    def __call__(self) -> Iterable[Document]: ...


class Texts:
    """The documents of files and folders; what cannot be read is left out and listed."""

    def __init__(self, paths: Sequence[str | Path], field: str = "text") -> None:
        self.unread: dict[str, None] = {}
        self.files = find_files(paths, bad=self._list)
        self.field = field

    def __call__(self) -> Iterator[Document]:
        for file in self.files:
            yield from read_documents(file, field=self.field, bad=self._list)

    def _list(self, bad: Bad) -> None:
        if not bad.note and len(self.unread) < LISTED:
            self.unread[str(bad)] = None


def check_out(out: Path, overwrite: bool) -> None:
    """Raises UsageError where `out` is there already, and not this kind of result or not to be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(f"'{out}' exists. Choose another --out, or give --overwrite to replace it.")
    if not all((out / name).is_file() for name in (TEXT, REPORT)):
        raise UsageError(f"'{out}' is no result of this command: nothing there was touched. Choose another --out.")


def unread_of(read: Read) -> list[str]:
    """What could not be read, for a report."""
    return list(read.unread) if isinstance(read, Texts) else []


def why_none(read: Read) -> str:
    """Where there is no document: the first thing that could not be read, as a sentence."""
    return next((f" {bad}" for bad in unread_of(read)), "")


Tell = Callable[[str, Document, int], None]  # what is being done, the document that is read, how many were before it


def dedupe(read: Read, out: str | Path, rules: Rules, tell: Tell | None = None) -> Report:
    """Write the documents that `read` gives (the same ones both times) without duplicates into `out`.

    The folder appears when everything is there. Raises `DataError` where there is no document or the corpus changes.
    """
    with atomic_folder(out) as part:
        scratch = part / "scratch"
        scratch.mkdir()
        work = _Work(read, rules, scratch, tell or _silent)
        work.measure()
        report = work.write(part / TEXT)
        report.unread = unread_of(read)
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()
        write_json(part / REPORT, asdict(report))
    return report


class _Ragged:
    """Hashes of all documents one behind the other, and where those of each end."""

    def __init__(self, scratch: Path, name: str) -> None:
        self._hashes, self._ends = Column(scratch / name, np.uint64), Column(scratch / f"{name}.ends", np.int64)

    def add(self, hashes: Hashes) -> None:
        """Those of the next document."""
        self._hashes.add(hashes)
        self._ends.add(np.array(self._hashes.rows))

    def judge(self, gone: Ints, above: int) -> None:
        """Which are repeated; those of the documents `gone` do not count."""
        hashes, self.ends = self._hashes.done(), self._ends.done()
        for number in gone[: len(self.ends)].tolist():
            hashes[self._span(number)] = NEVER
        self.goes = repeated(hashes, above=above)

    def of(self, number: int) -> NDArray[np.bool_]:
        """Which of a document's."""
        return self.goes[self._span(number)]

    def _span(self, number: int) -> slice:
        if not len(self.ends):
            return slice(0, 0)
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))


def _silent(doing: str, document: Document, number: int) -> None: ...


class _Work:
    def __init__(self, read: Read, rules: Rules, scratch: Path, tell: Tell) -> None:
        self.read, self.rules, self.scratch, self.tell = read, rules, scratch, tell
        self.like: Ints = np.zeros(0, np.int64)  # [N] the document that each repeats, or STAYS
        self.rule: list[str] = []  # of each document that goes, by number below
        self.by: NDArray[np.int8] = np.zeros(0, np.int8)  # [N] the rule by which it goes
        self.similarity: dict[int, float] = {}

    # ------------------------------------------------------------------------------------------------- measured

    def measure(self) -> None:
        """Which documents, paragraphs and parts go."""
        rules, near = self.rules, self.rules.near
        digests = Column(self.scratch / "digests", np.uint64, 2)
        signed = Column(self.scratch / "signatures", np.uint32, near.permutations if near else 1)
        columns = {name: _Ragged(self.scratch, name) for name in PARTS}
        waiting: list[str] = []
        for document in self._documents("measuring"):
            text = document.text
            digests.add(np.array(digest(text) if rules.exact else (0, 0), np.uint64))
            if (paragraph := rules.paragraphs) is not None:
                columns["paragraphs"].add(paragraph_hashes(text, paragraph.minimum_words, by=paragraph.by))
            if rules.overlap is not None:
                columns["overlap"].add(windows(units(text), rules.overlap)[0])
            if near:
                waiting.append(text)
                if sum(map(len, waiting)) >= TOGETHER:
                    signed.add(signatures(waiting, near))
                    waiting = []
        if near and waiting:
            signed.add(signatures(waiting, near))
        if not digests.rows:
            raise DataError(f"There is no document to compare.{why_none(self.read)}")
        self._judge(digests.done(), signed.done())
        for name, above in (("paragraphs", rules.paragraphs.above if rules.paragraphs else 0), ("overlap", 0)):
            columns[name].judge(np.flatnonzero(self.like != STAYS), above)
        self.columns = columns

    def _judge(self, digests: Hashes, signed: NDArray[np.uint32]) -> None:
        """Which documents go."""
        self.like = np.full(len(digests), STAYS, np.int64)
        self.by = np.zeros(len(digests), np.int8)
        if self.rules.exact:
            self._remove("exact", first_of(digests))
        if near := self.rules.near:
            first = clusters(signed, near, among=np.flatnonzero(self.like == STAYS))
            self._remove("near", first)
            goes = np.flatnonzero(first != np.arange(len(first)))[:SAMPLES]
            found = estimate(signed, np.stack([goes, first[goes]], 1))
            self.similarity = dict(zip(goes.tolist(), found.tolist(), strict=True))

    def _remove(self, rule: str, first: Ints) -> None:
        goes = first != np.arange(len(first))
        self.rule.append(rule)
        self.by[goes] = len(self.rule)
        self.like[goes] = first[goes]

    def _documents(self, doing: str) -> Iterator[Document]:
        number = -1
        for number, document in enumerate(self.read()):
            if len(self.like) and number >= len(self.like):
                raise DataError(f"'{document.path}' has grown while it was read. Run this again when it is finished.")
            self.tell(doing, document, number)
            yield document
        if number + 1 < len(self.like):
            raise DataError(f"The corpus has lost documents while it was read: {number + 1:,} of {len(self.like):,}.")

    # -------------------------------------------------------------------------------------------------- written

    def write(self, path: Path) -> Report:
        """The documents that stay, and the report."""
        self.report = Report(removed=dict.fromkeys(self.rule, 0))
        samples = {rule: np.flatnonzero(self.by == at)[:SAMPLES] for at, rule in enumerate(self.rule, 1)}
        wanted = {int(self.like[number]) for numbers in samples.values() for number in numbers}
        sampled = {int(number) for numbers in samples.values() for number in numbers}
        shown: dict[int, dict[str, Any]] = {}
        with path.open("w", encoding="utf-8") as file:
            for number, document in enumerate(self._documents("writing")):
                if number in wanted or number in sampled:
                    shown[number] = _shown(document)
                text = self._finished(number, document)
                self._count(document, text)
                if text:
                    file.write(json.dumps({**document.meta, "text": text}, ensure_ascii=False) + "\n")
        for rule, numbers in samples.items():
            self.report.samples[rule] = [self._sample(int(number), shown) for number in numbers]
        return self.report

    def _sample(self, number: int, shown: dict[int, dict[str, Any]]) -> dict[str, Any]:
        found = {"document": shown[number], "like": shown[int(self.like[number])]}
        return {**found, "similarity": self.similarity[number]} if number in self.similarity else found

    def _finished(self, number: int, document: Document) -> str:
        """The text as it is written; empty: it goes."""
        if self.like[number] != STAYS:
            self.report.removed[self.rule[self.by[number] - 1]] += 1
            return ""
        text = document.text
        gone = self._paragraphs(number, text)
        left = spans.without(text, gone)
        self._lost("paragraphs", document, text, left)
        if (rule := self.rules.overlap) is None or not (goes := self.columns["overlap"].of(number)).any():
            return left
        found = units(text)
        repeats, share = covered(text, found, windows(found, rule)[1][goes], rule)
        both = np.concatenate([gone, repeats])
        less = "" if share >= rule.share else spans.without(text, both, rule.shortest)
        self._lost("overlap", document, left, less, share=share, repeated=_line(text[slice(*repeats[0])]))
        return less

    def _paragraphs(self, number: int, text: str) -> Ints:
        """The paragraphs of a text that go, as parts of it."""
        goes = self.columns["paragraphs"].of(number)
        if self.rules.paragraphs is None or not goes.any():
            return np.zeros((0, 2), np.int64)
        return parts(text, goes, by=self.rules.paragraphs.by)

    def _lost(self, rule: str, document: Document, before: str, after: str, **more: Any) -> None:
        if before == after:
            return
        if after:
            self.report.cut[rule] = self.report.cut.get(rule, 0) + len(before) - len(after)
        else:
            self.report.removed[rule] = self.report.removed.get(rule, 0) + 1
        samples = self.report.samples.setdefault(rule, [])
        if len(samples) < SAMPLES:
            samples.append({"document": _shown(document), "characters": len(before) - len(after), **more})

    def _count(self, document: Document, text: str) -> None:
        report = self.report
        source = report.sources.setdefault(
            str(document.path), {"documents": 0, "characters": 0, "kept": 0, "kept_characters": 0}
        )
        counts = {"documents": 1, "characters": len(document.text), "kept": bool(text), "kept_characters": len(text)}
        for key, count in counts.items():
            source[key] += count
        report.documents += 1
        report.characters += len(document.text)
        report.kept += bool(text)
        report.kept_characters += len(text)


def _shown(document: Document) -> dict[str, Any]:
    return {"path": str(document.path), "line": document.line, "text": _line(document.text[: 2 * SHOWN])}


def _line(text: str) -> str:
    return " ".join(text.split())[:SHOWN]
