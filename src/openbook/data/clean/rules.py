"""The published rules of what good text looks like, as values: Gopher's, FineWeb's, C4's.

Gopher's rules and FineWeb's look at the statistics of a document (statistics.py), counted once for all of them. C4's
also take lines out of it. All were made for web pages in English; a book has more than 100,000 words, verse has short
lines, and Chinese has no spaces: change the thresholds with the source.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from openbook.data.clean.statistics import REPEATED, TOP, Statistics, count
from openbook.data.clean.stored import version
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import ConfigError, DataError
from openbook.files import explain_os_error


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Rae et al. 2021, appendix A.1.1, "quality filtering"."""

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    """Characters of a word, on average."""
    max_word_length: float = 10.0
    max_symbols: float = 0.1
    """Of `#`, and of ellipses, for each word."""
    max_bullet_lines: float = 0.9
    """Of all lines; so below."""
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    """Of all words: those with a letter."""
    min_stop_words: int = 2
    """How many of `stop_words` stand in it, each counted once."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    def broken(self, found: Statistics) -> Iterator[Removed]:
        """The rules that a document with these statistics breaks."""
        words, lines = max(1, found.words), max(1, found.lines)
        yield from _below("gopher quality: words", found.words, self.min_words)
        yield from _above("gopher quality: words", found.words, self.max_words)
        length = found.word_characters / words
        yield from _below("gopher quality: mean word length", length, self.min_word_length)
        yield from _above("gopher quality: mean word length", length, self.max_word_length)
        yield from _above("gopher quality: hash signs", found.hashes / words, self.max_symbols)
        yield from _above("gopher quality: ellipses", found.ellipses / words, self.max_symbols)
        yield from _above("gopher quality: bullet lines", found.bullet_lines / lines, self.max_bullet_lines)
        yield from _above("gopher quality: ellipsis lines", found.ellipsis_lines / lines, self.max_ellipsis_lines)
        letters = found.alphabetic_words / words
        yield from _below("gopher quality: words with a letter", letters, self.min_alphabetic_words)
        yield from _below("gopher quality: stop words", found.stop_words, self.min_stop_words)


@dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Rae et al. 2021, table A1: the largest part of a document that may be repetition."""

    max_lines: float = 0.30
    """Duplicate lines, of all lines."""
    max_paragraphs: float = 0.30
    max_line_characters: float = 0.20
    """Their characters, of those of all lines."""
    max_paragraph_characters: float = 0.20
    max_top_grams: tuple[float, float, float] = (0.20, 0.18, 0.16)
    """Characters of the most frequent 2-, 3- and 4-gram, of those of all words."""
    max_repeated_grams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Characters in repeated 5-, 6- … 10-grams, of those of all words."""

    def broken(self, found: Statistics) -> Iterator[Removed]:
        """The rules that a document with these statistics breaks."""
        lines, paragraphs = max(1, found.lines), max(1, found.paragraphs)
        within, inside = max(1, found.line_characters), max(1, found.word_characters)
        yield from _above("gopher repetition: lines", found.duplicate_lines / lines, self.max_lines)
        yield from _above("gopher repetition: paragraphs", found.duplicate_paragraphs / paragraphs, self.max_paragraphs)
        again = found.duplicate_line_characters / within
        yield from _above("gopher repetition: characters in lines", again, self.max_line_characters)
        again = found.duplicate_paragraph_characters / within
        yield from _above("gopher repetition: characters in paragraphs", again, self.max_paragraph_characters)
        for n, characters, most in zip(TOP, found.top_grams, self.max_top_grams, strict=True):
            yield from _above(f"gopher repetition: top {n}-gram", characters / inside, most)
        for n, characters, most in zip(REPEATED, found.repeated_grams, self.max_repeated_grams, strict=True):
            yield from _above(f"gopher repetition: repeated {n}-grams", characters / inside, most)


@dataclass(frozen=True, kw_only=True)
class FineWeb:
    """Penedo et al. 2024, section 3.5."""

    min_terminal_lines: float = 0.12
    """Lines that end as a sentence does, of all lines."""
    max_line_characters: float = 0.1
    """Characters of duplicate lines, of those of all lines. The paper says 0.1, the code that was released 0.01."""
    max_short_lines: float = 0.67
    """Lines of at most `short` characters, of all lines."""
    short: int = 30

    def broken(self, found: Statistics) -> Iterator[Removed]:
        """The rules that a document with these statistics breaks."""
        lines, within = max(1, found.lines), max(1, found.line_characters)
        yield from _below("fineweb: lines that end a sentence", found.terminal_lines / lines, self.min_terminal_lines)
        again = found.duplicate_line_characters / within
        yield from _above("fineweb: characters in duplicate lines", again, self.max_line_characters)
        yield from _above("fineweb: short lines", found.short_lines / lines, self.max_short_lines)


def _above(rule: str, found: float, most: float) -> Iterator[Removed]:
    if found > most:
        yield Removed(rule, f"{found:.4g}, {most:g} at most")


def _below(rule: str, found: float, least: float) -> Iterator[Removed]:
    if found < least:
        yield Removed(rule, f"{found:.4g}, {least:g} at least")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Remove a document that breaks a rule of one of these sets; the first rule broken is the reason."""

    name: ClassVar[str] = "rules"

    gopher_quality: GopherQuality | None = GopherQuality()
    gopher_repetition: GopherRepetition | None = GopherRepetition()
    fineweb: FineWeb | None = FineWeb()

    def __call__(self, document: Document, /) -> Document | Removed:
        return next(self.broken(document.text), document)

    def broken(self, text: str) -> Iterator[Removed]:
        """Every rule that a text breaks."""
        quality, fineweb = self.gopher_quality, self.fineweb
        found = count(text, quality.stop_words if quality else (), fineweb.short if fineweb else 0)
        for rules in (quality, self.gopher_repetition, fineweb):
            if rules:
                yield from rules.broken(found)


# ------------------------------------------------------------------------------------------------ C4

_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*(?!\S)")
_END_MARKS = (".", "?", "!", '"', "”")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[(?:\d{1,3}|edit|citation needed)\]")


@dataclass(frozen=True, kw_only=True)
class C4:
    """Raffel et al. 2020, section 2.2. Lines that are no sentences go, then documents of which too little is left.

    `meta` gets `c4_lines_removed`, where there were any. For web pages: a book whose lines are broken at a width loses
    most of them.
    """

    name: ClassVar[str] = "c4"

    terminal_punctuation: bool = True
    """Lines stay that end with a full stop, a question or exclamation mark or a closing quotation mark; not `...`."""
    min_line_words: int = 5
    """Words of a line that stays; so below."""
    max_word_length: int = 1000
    """Characters of its longest word."""
    javascript: bool = True
    """Lines with the word javascript go."""
    policies: bool = True
    """Lines about cookies, privacy policies and terms of use go."""
    citations: bool = True
    """Marks such as [1] and [citation needed] go."""
    min_sentences: int = 3
    """Sentences of a document that stays."""
    lorem_ipsum: bool = True
    """Documents with "lorem ipsum" go."""
    curly_bracket: bool = True
    """Documents with `{` go: most are code."""
    bad_words: Path | None = None
    """A file of words, one a line: documents with one of them, in any case, go."""

    def __call__(self, document: Document, /) -> Document | Removed:
        lowered = document.text.lower()
        if self.lorem_ipsum and "lorem ipsum" in lowered:
            return Removed("c4: lorem ipsum")
        if self.curly_bracket and "{" in lowered:
            return Removed("c4: curly bracket")
        if self.bad_words and (word := _bad_words(self.bad_words, version(self.bad_words)).find(lowered)):
            return Removed("c4: bad word", f"{word[0]}{'*' * (len(word) - 1)}")
        lines = document.text.split("\n")
        kept = list(self._kept(lines, lowered))
        text = "\n".join(kept)
        sentences = sum(1 for _ in _SENTENCE_END.finditer(text))
        if sentences < self.min_sentences:
            return Removed("c4: sentences", f"{sentences}, {self.min_sentences} at least")
        if text == document.text:
            return document
        removed = sum(map(bool, map(str.strip, lines))) - sum(map(bool, kept))
        return replace(
            document, text=text, meta={**document.meta, **({"c4_lines_removed": removed} if removed else {})}
        )

    def _kept(self, lines: list[str], lowered: str) -> Iterator[str]:
        """The lines that stay, without citation marks; what parts paragraphs stays between them."""
        unwanted = [*(["javascript"] if self.javascript else []), *(_POLICIES if self.policies else ())]
        unwanted = [phrase for phrase in unwanted if phrase in lowered]
        cited = self.citations and "[" in lowered
        blank = True  # none at the beginning, and no two together
        for line in lines:
            line = line.strip()
            if not line:
                if not blank:
                    yield ""
                blank = True
                continue
            if cited:
                line = _CITATION.sub("", line)
            if self._stays(line, unwanted):
                yield line
                blank = False

    def _stays(self, line: str, unwanted: list[str]) -> bool:
        if self.terminal_punctuation and (not line.endswith(_END_MARKS) or line.endswith("...")):
            return False
        if len(line.split(maxsplit=self.min_line_words)) < self.min_line_words:
            return False
        if len(line) > self.max_word_length and max(map(len, line.split())) > self.max_word_length:
            return False
        return not unwanted or not any(phrase in line.lower() for phrase in unwanted)


@dataclass(frozen=True, slots=True)
class _BadWords:
    words: frozenset[str]  # of one word: found in the set of a document's words
    phrases: re.Pattern[str] | None  # of several, or with other signs: searched for

    def find(self, lowered: str) -> str:
        """One of them that stands in a lower-case text; the empty text where there is none."""
        if found := self.words.intersection(re.findall(r"\w+", lowered)):
            return min(found)
        match = self.phrases.search(lowered) if self.phrases else None
        return match[0] if match else ""


@functools.lru_cache(4)
def _bad_words(path: Path, _version: tuple[int, int]) -> _BadWords:
    try:
        lines = {line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start}): it should hold one word a line.") from error
    if not lines:
        raise ConfigError(f"'{path}' holds no word: one a line, or leave `bad_words` out (step 'c4').")
    words = frozenset(line for line in lines if re.fullmatch(r"\w+", line))
    phrases = "|".join(map(re.escape, sorted(lines - words, key=len, reverse=True)))
    return _BadWords(words, re.compile(rf"(?<!\w)(?:{phrases})(?!\w)") if phrases else None)
