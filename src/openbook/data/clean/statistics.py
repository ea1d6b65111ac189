"""What a document is made of: words, lines, paragraphs, and how much of it repeats. The reference, and what is counted.

All counts are whole numbers, so the native pass (native/textstats.cpp) must give the same ones; `count` chooses.

- white space: what `str.isspace` says. A word is a longest run of other characters: right for languages that put
  spaces between words; Chinese, Japanese or Thai are a few very long words, and need other thresholds.
- a line: what stands between newlines, without the white space at its ends; an empty one is none. Lines that follow
  each other without an empty one between them are a paragraph.
- characters are code points. Those of words, of lines and of paragraphs are summed without what parts them.
- a duplicate line or paragraph equals an earlier one; the first is not a duplicate.
- an n-gram is n words in a row. `top_grams`: the characters of the most frequent one times its count, where it comes
  at least twice (the longest, of several). `repeated_grams`: the characters of all words that lie in an n-gram which
  has come before, each counted once (Rae et al. 2021, appendix A.1.1).
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Item = TypeVar("Item")

TOP = (2, 3, 4)  # the lengths of `top_grams`
REPEATED = (5, 6, 7, 8, 9, 10)  # and of `repeated_grams`
GRAMS = TOP + REPEATED
# Ends of sentences, and the quotation marks that close after them.
TERMINAL = frozenset(".!?…。！？｡؟۔।॥።፧‼⁇⁈⁉\"'”’»›」』")
BULLETS = frozenset("•‣▪▫■□●○◦►▶◆◇–—-*·")
ELLIPSES = ("...", "…")


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counts of one document."""

    characters: int  # all of them
    words: int
    word_characters: int
    alphabetic_words: int  # with at least one letter
    stop_words: int  # how many of the asked words stand in it, each counted once
    hashes: int  # the sign #
    ellipses: int  # … or three dots
    lines: int
    line_characters: int
    bullet_lines: int  # begin with a bullet
    ellipsis_lines: int  # end with an ellipsis
    terminal_lines: int  # end with one of TERMINAL
    short_lines: int  # at most as many characters as asked
    duplicate_lines: int
    duplicate_line_characters: int
    paragraphs: int
    duplicate_paragraphs: int
    duplicate_paragraph_characters: int
    top_grams: tuple[int, ...]  # characters, for each length of TOP
    repeated_grams: tuple[int, ...]  # characters, for each length of REPEATED


_SINGLES = [field.name for field in fields(Statistics) if field.name not in ("top_grams", "repeated_grams")]


def count(text: str, stop_words: Sequence[str] = (), short: int = 30) -> Statistics:
    """The statistics of a text: natively where there is a compiler, else by the reference."""
    from openbook.native import textstats

    if (counts := textstats.count(text, character_flags(), stop_words, short)) is None:
        return count_reference(text, stop_words, short)
    singles: dict[str, Any] = dict(zip(_SINGLES, counts, strict=False))
    tops = counts[-len(GRAMS) : -len(REPEATED)]
    return Statistics(**singles, top_grams=tops, repeated_grams=counts[-len(REPEATED) :])


@functools.cache
def character_flags() -> bytes:
    """For each code point: 1 white space, 2 letter, 4 in TERMINAL, 8 in BULLETS; so that both ways know the same."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    flags = bytearray(len(every))
    for flag, some in (
        (1, filter(str.isspace, re.findall(r"\s", every))),
        (2, filter(str.isalpha, re.findall(r"\w", every))),
        (4, TERMINAL),
        (8, BULLETS),
    ):
        for character in some:
            flags[ord(character)] |= flag
    return bytes(flags)


def count_reference(text: str, stop_words: Sequence[str] = (), short: int = 30) -> Statistics:
    """The statistics of a text, in plain Python."""
    words = text.split()
    lengths = [len(word) for word in words]
    seen = set(words)
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    again = _duplicates(lines)
    paragraphs = _paragraphs(text)
    paragraphs_again = _duplicates(paragraphs)
    return Statistics(
        characters=len(text),
        words=len(words),
        word_characters=sum(lengths),
        alphabetic_words=sum(any(map(str.isalpha, word)) for word in words),
        stop_words=sum(word in seen for word in set(stop_words)),
        hashes=text.count("#"),
        ellipses=sum(text.count(ellipsis) for ellipsis in ELLIPSES),
        lines=len(lines),
        line_characters=sum(map(len, lines)),
        bullet_lines=sum(line[0] in BULLETS for line in lines),
        ellipsis_lines=sum(line.endswith(ELLIPSES) for line in lines),
        terminal_lines=sum(line[-1] in TERMINAL for line in lines),
        short_lines=sum(len(line) <= short for line in lines),
        duplicate_lines=len(again),
        duplicate_line_characters=sum(map(len, again)),
        paragraphs=len(paragraphs),
        duplicate_paragraphs=len(paragraphs_again),
        duplicate_paragraph_characters=sum(len(line) for paragraph in paragraphs_again for line in paragraph),
        top_grams=tuple(_top(words, n) for n in TOP),
        repeated_grams=tuple(_repeated(words, lengths, n) for n in REPEATED),
    )


def _paragraphs(text: str) -> list[tuple[str, ...]]:
    """Each as its lines."""
    found: list[tuple[str, ...]] = []
    lines: list[str] = []
    for line in (*map(str.strip, text.split("\n")), ""):
        if line:
            lines.append(line)
        elif lines:
            found.append(tuple(lines))
            lines = []
    return found


def _duplicates(items: Sequence[Item]) -> list[Item]:
    """Those that equal an earlier one."""
    seen: set[Item] = set()
    found = []
    for item in items:
        if item in seen:
            found.append(item)
        seen.add(item)
    return found


def _top(words: Sequence[str], n: int) -> int:
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(grams.values(), default=0)
    if most < 2:
        return 0
    return most * max(sum(map(len, gram)) for gram, times in grams.items() if times == most)


def _repeated(words: Sequence[str], lengths: Sequence[int], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    total = covered = 0  # characters; words before this index are counted already
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            total += sum(lengths[max(start, covered) : start + n])
            covered = start + n
        seen.add(gram)
    return total
