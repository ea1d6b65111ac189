"""Evaluation items that stand in a training set: found by their n-grams, taken out, listed.

    evaluation files ──n-grams of words──▶ Index (a folder: sorted hashes, and which items have them)
    document ──its n-grams, found in the index, compared word for word──▶ Found: the shared parts, the items

After Brown et al. 2020 (GPT-3, appendix C): n = 13 words without case and punctuation; a phrase that many documents
share is no contamination (`ignore`); of a document the shared part goes with a margin of 200 characters, or all of it
if too little is left. An item's text shorter than n words is looked for as a whole; one shorter than `shortest` is
not, but a question that is may be found with its answer. N-grams that more than `common` different texts share are the
wording of the task, not its content.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.data.dedupe import spans
from openbook.data.dedupe.evaluation import Evaluation, Item
from openbook.data.dedupe.lookup import Lookup
from openbook.data.dedupe.words import Hashes, Ints, Units, folded, ngrams, units
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import DataError, UsageError
from openbook.files import atomic_folder, read_json, write_json

FORMAT, VERSION = "openbook contamination index", 1
ENTRY = np.dtype(
    [("item", "<i8"), ("passage", "<i4"), ("word", "<i4")]
)  # where an n-gram stands in the evaluation sets
ACTIONS = ("cut", "remove")
SHOWN = 300  # characters of a shared part that a report shows


@dataclass(frozen=True, slots=True)
class Found:
    """A part of a document that stands in evaluation items too."""

    start: int  # characters
    end: int
    items: tuple[int, ...]  # numbers in the index


class Index:
    """The n-grams of evaluation sets, in a folder; the arrays are mapped, so that processes share them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = read_json(folder / "index.json") if (folder / "index.json").is_file() else {}
        if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != VERSION:
            raise DataError(f"'{folder}' is not an index of evaluation sets. Make one with `Index.build`.")
        self.n: int = about["n"]
        self.lengths: list[int] = about["lengths"]
        self.sets: dict[str, dict[str, int]] = about["sets"]
        try:
            self.lookup = Lookup(_mapped(folder / "grams.npy"), self.lengths)
            self.begins: Ints = _mapped(folder / "begins.npy")  # [K+1] where the entries of each n-gram begin
            self.entries: NDArray[Any] = _mapped(folder / "entries.npy")
            self.lines: Ints = _mapped(folder / "lines.npy")  # where each item begins in items.jsonl
        except (OSError, ValueError) as error:
            raise DataError(f"The index '{folder}' is damaged ({error}). Build it again.") from error
        self.ignored = np.zeros(len(self.lookup.hashes), bool)
        self.shortest: int = about["shortest"]
        self._item = functools.lru_cache(4096)(self._read_item)
        self._passages = functools.lru_cache(4096)(lambda number: self.item(number).passages(self.shortest))

    # ------------------------------------------------------------------------------------------------------ made

    @classmethod
    def build(
        cls,
        sets: Iterable[Evaluation],
        folder: str | Path,
        *,
        n: int = 13,
        shortest: int = 8,
        common: int = 10,
        fields: Sequence[str] = (),
    ) -> Index:
        """Write the index of evaluation sets into `folder`. Raises `DataError` for files that cannot be read."""
        if not 1 <= shortest <= n:
            raise UsageError(f"`shortest` is from 1 to n: got shortest={shortest}, n={n}.")
        about: dict[str, dict[str, int]] = {}
        hashes, wholes, entries, lengths, number = [_NO_HASHES], [_NO_HASHES], [np.zeros(0, ENTRY)], set[int](), 0
        with atomic_folder(folder) as part:
            lines = [0]
            with (part / "items.jsonl").open("wb") as file:
                for evaluation in sets:
                    counts = about.setdefault(evaluation.name, {"items": 0, "too_short": 0})
                    for item in evaluation.items(fields):
                        before = len(hashes)
                        for grams, whole, length, where in _grams_of(item, number, n, shortest):
                            hashes.append(grams)
                            wholes.append(whole)
                            entries.append(where)
                            lengths.add(length)
                        counts["items"] += 1
                        counts["too_short"] += len(hashes) == before
                        file.write(json.dumps([item.set, item.number, item.texts]).encode() + b"\n")
                        lines.append(file.tell())
                        number += 1
            _write_arrays(part, np.concatenate(hashes), np.concatenate(wholes), np.concatenate(entries), common)
            np.save(part / "lines.npy", np.array(lines, np.int64))
            options = {"n": n, "shortest": shortest, "common": common, "fields": list(fields)}
            write_json(
                part / "index.json",
                {"format": FORMAT, "version": VERSION, **options, "lengths": sorted(lengths), "sets": about},
            )
        return cls(Path(folder))

    # ------------------------------------------------------------------------------------------------------ asked

    def __len__(self) -> int:
        return len(self.lookup.hashes)

    def item(self, number: int) -> Item:
        """An evaluation item."""
        return self._item(number)

    def find(self, text: str) -> list[Found]:
        """The parts of `text` that evaluation items have too, in order."""
        found = units(text)
        starts, lengths, grams = self._hits(text, found)
        parts = []
        for first, last in spans.merge(starts, starts + lengths).tolist():
            low, high = np.searchsorted(starts, [first, last])
            if last - first < 2 * self.n and self.ignored[grams[low:high]].all():
                continue
            ((start, end),) = spans.of_windows(np.array([first]), last - first, found, text).tolist()
            parts.append(Found(start, end, self._items(grams[low:high])))
        return parts

    def grams(self, text: str) -> Ints:
        """Which n-grams of the index `text` has, each once: what `ignore` is decided by."""
        return np.unique(self._hits(text, units(text))[2])

    def ignore(self, grams: NDArray[np.bool_]) -> Index:
        """The same index, which passes over phrases: parts under 2n words whose n-grams are all marked, [K]."""
        other = Index(self.folder)
        other.ignored = self.ignored | grams
        return other

    def _hits(self, text: str, found: Units) -> tuple[Ints, Ints, Ints]:
        """The n-grams of `text` that are in the index, in order: the first word, the words, the number there."""
        hits = self.lookup.search(found.hashes)
        if not hits.shape[1]:
            return _NONE, _NONE, _NONE
        hits = hits[:, np.lexsort(hits[1::-1])]
        first, last, number = hits[:, self._equal(text, found, hits)]
        return first, last, number

    def _equal(self, text: str, found: Units, hits: Ints) -> NDArray[np.bool_]:
        """Which hits [3,H] have the same words as the item, not their hashes alone.

        Neighbours that stand side by side in the same passage are compared at once, as one run of words.
        """
        starts, lengths, grams = hits
        places = self.entries[self.begins[grams]]
        same_place = (places["item"][1:] == places["item"][:-1]) & (places["passage"][1:] == places["passage"][:-1])
        steps = (np.diff(starts) == 1) & (np.diff(places["word"]) == 1) & (np.diff(lengths) == 0)
        first = np.flatnonzero(np.append(True, ~(same_place & steps)))
        same = np.zeros(len(starts), bool)
        for low, high in pairwise([*first.tolist(), len(starts)]):
            start, last = int(starts[low]), int(starts[high - 1] + lengths[low])
            item, passage, word = places[low].item()
            ours, theirs = folded(text, found, start, last), _words_of(self._passages(item)[passage])[word:]
            if ours == theirs[: len(ours)]:
                same[low:high] = True
                continue
            n = int(lengths[low])
            same[low:high] = [ours[at : at + n] == theirs[at : at + n] for at in range(high - low)]
        return same

    def _items(self, grams: Ints) -> tuple[int, ...]:
        """All items that have one of the n-grams."""
        begins, ends = self.begins[grams], self.begins[grams + 1]
        counts = ends - begins
        rows = np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())
        return tuple(np.unique(self.entries["item"][rows]).tolist())

    def _read_item(self, number: int) -> Item:
        with (self.folder / "items.jsonl").open("rb") as file:
            file.seek(int(self.lines[number]))
            name, place, texts = json.loads(file.readline())
        return Item(name, place, tuple(texts))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, np.flatnonzero(self.ignored))


_NONE = np.zeros(0, np.int64)
_NO_HASHES = np.zeros(0, np.uint64)


def _reopened(folder: Path, ignored: Ints) -> Index:
    index = Index(folder)
    index.ignored[ignored] = True
    return index


@functools.lru_cache(512)
def _words_of(text: str) -> list[str]:
    found = units(text)
    return folded(text, found, 0, len(found))


def _mapped(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a plain array over it: cheaper to index


def _grams_of(item: Item, number: int, n: int, shortest: int) -> Iterator[tuple[Hashes, Hashes, int, NDArray[Any]]]:
    """Of each passage: its n-grams, the hash of all of it beside each, n, and where they stand."""
    for place, text in enumerate(item.passages(shortest)):
        words = units(text).hashes
        length = min(n, len(words))
        grams = ngrams(words, length)
        where = np.zeros(len(grams), ENTRY)
        where["item"], where["passage"], where["word"] = number, place, np.arange(len(grams))
        yield grams, np.repeat(ngrams(words, len(words)), len(grams)), length, where


def _write_arrays(folder: Path, hashes: Hashes, wholes: Hashes, entries: NDArray[Any], common: int) -> None:
    """Sorted n-grams without repeats, and behind each the items that have it, each once."""
    both = np.unique(np.stack([hashes, wholes], 1), axis=0)  # an n-gram and a text, however many items have that text
    grams, texts = np.unique(both[:, 0], return_counts=True)
    grams = grams[texts <= common]
    kept = np.isin(hashes, grams)
    hashes, entries = hashes[kept], entries[kept]
    order = np.lexsort((entries["word"], entries["item"], hashes))
    hashes, entries = hashes[order], entries[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (entries["item"][1:] != entries["item"][:-1])
    counts = np.unique(hashes[new], return_counts=True)[1]
    np.save(folder / "grams.npy", grams)
    np.save(folder / "begins.npy", np.cumsum(np.append(0, counts), dtype=np.int64))
    np.save(folder / "entries.npy", entries[new])


@dataclass(frozen=True)
class Decontaminate:
    """The step: documents go, or lose the parts that they share with evaluation items."""

    index: Index
    action: str = "cut"  # or "remove": the whole document
    margin: int = 200  # characters beside a shared part that go with it
    shortest: int = 200  # characters: pieces that are left and are shorter go too
    most: int = 10  # a document with more shared parts goes as a whole
    name: str = "decontaminate"

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise UsageError(f"`action` is {' or '.join(ACTIONS)}: got {self.action!r}.")
        if self.margin < 0:
            raise UsageError(f"`margin` is a number of characters, 0 or more: got {self.margin}.")

    def __call__(self, document: Document, /) -> Document | Removed:
        return self.apply(document, self.index.find(document.text))

    def apply(self, document: Document, found: Sequence[Found]) -> Document | Removed:
        """What becomes of a document in which these parts were found."""
        if not found:
            return document
        first = self.index.item(found[0].items[0])
        detail = f"{first.set}, item {first.number}: {shown(document.text, found[0])}"
        both = np.array([(part.start, part.end) for part in found], np.int64)
        if self.action == "remove":
            return Removed("contaminated", detail)
        wide = spans.widen(both, self.margin, document.text)
        pieces = spans.cut(document.text, wide, shortest=self.shortest)
        if len(wide) > self.most or not pieces:
            return Removed("contaminated", f"{len(wide)} parts; {detail}")
        return replace(document, text=spans.glue(pieces), meta={**document.meta, "decontaminated": len(wide)})


def shown(text: str, part: Found) -> str:
    """A shared part as one line, cut if it is long."""
    line = " ".join(text[part.start : part.end].split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


@dataclass
class Overlaps:
    """What was found in a corpus: which item, which document, the shared text; how many items of each set."""

    index: Index
    examples: int = 1000  # at most so many shared parts are kept
    documents: int = 0
    contaminated: int = 0  # documents
    parts: list[dict[str, Any]] = field(default_factory=list)
    items: set[int] = field(default_factory=set)

    def add(self, document: Document, found: Sequence[Found]) -> None:
        """Count a document."""
        self.documents += 1
        self.contaminated += bool(found)
        for part in found:
            self.items.update(part.items)
            if len(self.parts) < self.examples:
                named = [self.index.item(number) for number in part.items[:5]]
                self.parts.append({
                    "items": [{"set": item.set, "number": item.number} for item in named],
                    "path": str(document.path), "line": document.line, "start": part.start, "end": part.end,
                    "text": shown(document.text, part),
                })  # fmt: skip

    def sets(self) -> dict[str, dict[str, float]]:
        """Of each set its items, those too short to look for, those found, and the latter as a part of all."""
        dirty: dict[str, int] = {}
        for number in self.items:
            name = self.index.item(number).set
            dirty[name] = dirty.get(name, 0) + 1
        return {
            name: {**counts, "dirty": dirty.get(name, 0), "part": dirty.get(name, 0) / max(1, counts["items"])}
            for name, counts in self.index.sets.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "n": self.index.n, "documents": self.documents, "contaminated": self.contaminated,
            "sets": self.sets(), "overlaps": self.parts,
        }  # fmt: skip

    def as_text(self) -> str:
        """A table of the sets, the worst first, and the first shared parts."""
        sets = self.sets()
        rows = sorted(((n, row) for n, row in sets.items() if row["dirty"]), key=lambda row: (-row[1]["part"], row[0]))
        wide = max([len(name) for name, _ in rows] or [3])
        lines = [f"{self.contaminated:,} of {self.documents:,} documents share {self.index.n} words or a whole text"]
        lines.append(f"{len(rows):,} of {len(sets):,} sets have an item that was found")
        lines += [f"{'set':<{wide}} {'items':>8} {'too short':>10} {'found':>7}"] if rows else []
        lines += [
            f"{name:<{wide}} {row['items']:>8,.0f} {row['too_short']:>10,.0f} {row['dirty']:>7,.0f} {row['part']:>7.2%}"
            for name, row in rows
        ]
        for part in self.parts[:20]:
            first = part["items"][0]
            lines.append(
                f"{first['set']}, item {first['number']} in {part['path']}, line {part['line']}: {part['text']}"
            )
        return "\n".join(lines)
