"""Counting who and what a text talks about, document by document; memory does not grow with the text.

A document falls into one cell, (source, language, topic, gender): the topic whose listed words it uses most, the gender
whose words it uses clearly more. What is counted otherwise is words: of groups of people, of places, of years, and how
often words stand near those of women and of men.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import log

from openbook.data.audit.words import lists
from openbook.data.documents import Document

AXES = ("source", "language", "topic", "gender")
WINDOW = 10  # words to both sides in which a word stands near another
SOURCES = 500  # names that are told apart; further ones are "others"
SLICE = 1 << 20  # characters of a long document that are looked at at once
SAMPLED, WORDS_SAMPLED = 2000, 1500  # documents of which topics are found, and words read of each
STEPS_OF_LENGTH = 10  # buckets of the histogram of lengths between a length and its double

_WORD = re.compile(r"[^\W\d_]+")
_YEAR = re.compile(r"(?<![\w.,])(?:1\d{3}|20\d{2})(?![\w,]|\.\d)")
_ENDS = re.compile(r"[.!?]+(?=[\s\"'”’)\]]|$)|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Place:
    """The cell of a document."""

    source: str
    language: str
    topic: str
    gender: str

    def name(self, axes: tuple[str, ...]) -> str:
        """The cell of these axes alone, as a name."""
        values = {"source": self.source, "language": self.language, "topic": self.topic, "gender": self.gender}
        return "-".join(values[axis] for axis in axes)


@dataclass
class Size:
    """How much text there is."""

    documents: int = 0
    words: int = 0
    letters: int = 0
    sentences: int = 0

    def add(self, other: Size) -> None:
        self.documents += other.documents
        self.words += other.words
        self.letters += other.letters
        self.sentences += other.sentences

    @property
    def grade(self) -> float | None:
        """The automated readability index (Smith & Senter 1967): about the school year that reads it."""
        if not self.words or not self.sentences:
            return None
        return 4.71 * self.letters / self.words + 0.5 * self.words / self.sentences - 21.43


@dataclass
class _Found:
    """What one document says."""

    size: Size = field(default_factory=Size)
    groups: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # axis, group, word
    near: Counter[tuple[str, str]] = field(default_factory=Counter)  # tracked word, gender
    countries: Counter[str] = field(default_factory=Counter)
    years: Counter[int] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a listed word is."""

    groups: tuple[tuple[str, str], ...]  # axis, group
    topics: tuple[str, ...]
    tracked: bool  # its neighbours are looked at

    @property
    def gender(self) -> str:
        return next((group for axis, group in self.groups if axis == "gender"), "")


@functools.cache
def _known() -> dict[str, _Known]:
    all_lists = lists()
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    topics: dict[str, list[str]] = defaultdict(list)
    for axis, of_axis in all_lists.groups.items():
        for group, words in of_axis.items():
            for word in words:
                groups[word].append((axis, group))
    for topic, words in all_lists.topics.items():
        for word in words:
            topics[word].append(topic)
    tracked = frozenset().union(*all_lists.roles.values(), *(c.first | c.second for c in all_lists.contrasts))
    every = {*groups, *topics, *tracked}
    return {word: _Known(tuple(groups[word]), tuple(topics[word]), word in tracked) for word in every}


@functools.cache
def _phrases() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First word of a place → (its words, its country), the longest first."""
    found: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for name, country in lists().country_of.items():
        words = tuple(name.split())
        found[words[0]].append((words, country))
    return {first: sorted(phrases, key=lambda p: -len(p[0])) for first, phrases in found.items()}


class Counts:
    """The counts of a corpus. `language` says a document's language where its record does not."""

    def __init__(self, *, language: Callable[[str], str] | None = None, source_field: str = "source") -> None:
        self.language, self.source_field = language, source_field
        self.size = Size()
        self.sources: dict[str, Size] = {}
        self.files: dict[str, set[str]] = defaultdict(set)  # of each source; a few
        self.lengths: Counter[int] = Counter()  # buckets: see `length_of`
        self.groups: Counter[tuple[str, str, str]] = Counter()
        self.mentions: Counter[tuple[str, str]] = Counter()  # documents that name a group
        self.near: Counter[tuple[str, str]] = Counter()
        self.countries: Counter[str] = Counter()
        self.decades: Counter[int] = Counter()
        self.cells: dict[Place, Size] = {}
        self._sample: list[tuple[int, list[str]]] = []  # a heap of those with the lowest hashes

    def add(self, document: Document) -> Place:
        """Count one document; its cell."""
        found = _look(document.text)
        place = self._place(document, found)
        self.size.add(found.size)
        self.sources.setdefault(place.source, Size()).add(found.size)
        self.cells.setdefault(place, Size()).add(found.size)
        if len(self.files[place.source]) < 9:
            self.files[place.source].add(str(document.path))
        self.lengths[bucket(found.size.words)] += 1
        self.groups.update(found.groups)
        self.mentions.update({(axis, group) for axis, group, _ in found.groups})
        self.near.update(found.near)
        self.countries.update(found.countries)
        self.decades.update(found.years)
        self._keep(document.text, found.sample)
        return place

    def place(self, document: Document) -> Place:
        """The cell of a document, without counting it; sources that were not counted are "others"."""
        return self._place(document, _look(document.text))

    def _place(self, document: Document, found: _Found) -> Place:
        said = document.meta.get(self.source_field)
        source = said if isinstance(said, str) and said else document.path.name.partition(".")[0]
        if source not in self.sources and len(self.sources) >= SOURCES:
            source = "others"
        said = document.meta.get("language")
        language = said if isinstance(said, str) and said else self.language(document.text) if self.language else ""
        return Place(source, language or "unknown", _topic(found), _gender(found))

    @property
    def sample(self) -> list[list[str]]:
        """The words of some documents: those with the lowest hashes, whatever order they came in."""
        return [words for _, words in sorted(self._sample, reverse=True)]

    def _keep(self, text: str, words: list[str]) -> None:
        digest = hashlib.blake2b(text[:SLICE].encode("utf-8", "replace"), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), words)
        if len(self._sample) < SAMPLED:
            heapq.heappush(self._sample, entry)
        elif entry > self._sample[0]:
            heapq.heapreplace(self._sample, entry)


def bucket(words: int) -> int:
    """The bucket of a length; its bounds are those of `length_of`."""
    return 0 if words < 1 else 1 + int(log(words, 2) * STEPS_OF_LENGTH + 1e-9)


def length_of(number: int) -> float:
    """The shortest length of a bucket, in words."""
    return 0.0 if number == 0 else 2.0 ** ((number - 1) / STEPS_OF_LENGTH)


def _topic(found: _Found) -> str:
    """The topic with most words, if they are 3 at least and one in two hundred."""
    best = min(found.topics.items(), key=lambda pair: (-pair[1], pair[0]), default=("other", 0))
    return best[0] if best[1] >= 3 and best[1] * 200 >= found.size.words else "other"


def _gender(found: _Found) -> str:
    """Women, men, both, none: of whom a document speaks twice as often as of the others."""
    counts: Counter[str] = Counter()
    for (axis, group, _), count in found.groups.items():
        if axis == "gender":
            counts[group] += count
    women, men = counts["women"], counts["men"]
    if women + men == 0:
        return "none"
    return "women" if women > 2 * men else "men" if men > 2 * women else "both"


def _look(text: str) -> _Found:
    found = _Found()
    for part in _slices(text):
        _look_at(part, found)
    found.size.documents = 1
    found.size.sentences = max(1, found.size.sentences)
    return found


def _look_at(text: str, found: _Found) -> None:
    words = _WORD.findall(text)
    small = [word.lower() for word in words]
    known = _known()
    listed = [(at, word, known[word]) for at, word in enumerate(small) if word in known]
    for _, word, what in listed:
        for axis, group in what.groups:
            found.groups[axis, group, word] += 1
        for topic in what.topics:
            found.topics[topic] += 1
    _neighbours(listed, found.near)
    phrases = _phrases()
    for at, word in enumerate(words):
        if word in phrases:
            country = next((c for p, c in phrases[word] if tuple(words[at : at + len(p)]) == p), None)
            if country is not None:
                found.countries[country] += 1
    found.years.update(int(year) // 10 * 10 for year in _YEAR.findall(text))
    found.size.words += len(words)
    found.size.letters += sum(map(len, words))
    found.size.sentences += len(_ENDS.findall(text))
    if len(found.sample) < WORDS_SAMPLED:
        stop = lists().stop
        left = WORDS_SAMPLED - len(found.sample)
        found.sample += [word for word in small[: 3 * left] if len(word) > 2 and word not in stop][:left]


def _neighbours(listed: list[tuple[int, str, _Known]], near: Counter[tuple[str, str]]) -> None:
    """How often each tracked word stands near a word of each gender."""
    gendered = [(at, what.gender) for at, _, what in listed if what.gender]
    first = 0
    for at, word, what in listed:
        if not what.tracked:
            continue
        while first < len(gendered) and gendered[first][0] < at - WINDOW:
            first += 1
        for place, gender in gendered[first:]:
            if place > at + WINDOW:
                break
            if place != at:
                near[word, gender] += 1


def _slices(text: str) -> Iterator[str]:
    """A long text in parts, cut at white space where there is some."""
    at = 0
    while len(text) - at > SLICE:
        end = max(text.rfind(" ", at + SLICE // 2, at + SLICE), text.rfind("\n", at + SLICE // 2, at + SLICE))
        end = end if end > at else at + SLICE
        yield text[at:end]
        at = end
    yield text[at:]
