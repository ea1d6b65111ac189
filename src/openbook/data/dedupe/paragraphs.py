"""Paragraphs that stand more than once in a corpus: licences, notices, menus, passages quoted whole.

    hashes of all paragraphs, in order ──repeated()──▶ which of them go ──parts()──▶ the texts without them

The first occurrence stays; what occurs very often is boilerplate and may go altogether (`repeated(above=…)`). After
Wenzek et al. 2020 (CCNet, section 3.1) and Raffel et al. 2020 (C4, section 2.2), who do this to lines.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from openbook.data.dedupe.repeats import NEVER
from openbook.data.dedupe.repeats import repeated as repeated
from openbook.data.dedupe.words import Hashes, Ints, units
from openbook.errors import UsageError

_ENDS = {"paragraphs": re.compile(r"\n[^\S\n]*\n\s*"), "lines": re.compile(r"\n\s*")}


def paragraphs(text: str, *, by: str = "paragraphs") -> list[str]:
    """The paragraphs of a text, each with the white space behind it, so that together they are the text.

    `by`: "paragraphs" end with a blank line, "lines" with a line.
    """
    if by not in _ENDS:
        raise UsageError(f"`by` is {' or '.join(_ENDS)}: got {by!r}.")
    if not text:
        return []
    begin = len(text) - len(text.lstrip())
    ends = [match.end() for match in _ENDS[by].finditer(text, begin)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def paragraph_hashes(
    text: str, minimum_words: int = 12, minimum_characters: int = 0, *, by: str = "paragraphs"
) -> Hashes:
    """A hash for each paragraph, [K]: of its words. One that is shorter than a minimum has `NEVER`: it stays."""
    pieces = paragraphs(text, by=by)
    found = units(text)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    bounds = [0, *np.searchsorted(found.starts, ends).tolist()]
    hashes = np.full(len(pieces), NEVER, np.uint64)
    for number, (piece, first, last) in enumerate(zip(pieces, bounds[:-1], bounds[1:], strict=True)):
        if last - first >= max(1, minimum_words) and len(piece.strip()) >= minimum_characters:
            hashes[number] = max(1, _hash(found.hashes[first:last]))
    return hashes


def _hash(words: Hashes) -> int:
    return int.from_bytes(hashlib.blake2b(words.tobytes(), digest_size=8).digest(), "little")


def parts(text: str, goes: NDArray[np.bool_], *, by: str = "paragraphs") -> Ints:
    """The paragraphs that `goes` [K] marks: their first characters and those behind their last, [≤ K,2]."""
    pieces = paragraphs(text, by=by)
    if len(pieces) != len(goes):
        raise UsageError(f"`goes` marks {len(goes)} paragraphs, the text has {len(pieces)}.")
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return np.stack([np.append(0, ends[:-1]), ends], 1)[goes] if len(pieces) else np.zeros((0, 2), np.int64)
