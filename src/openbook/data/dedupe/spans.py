"""Parts of a text, as [K,2] of first characters and characters behind the last: joined, widened, cut out."""

from __future__ import annotations

import re

import numpy as np

from openbook.data.dedupe.words import Ints, Units

WORD = 32  # characters: what is longer is no word that is cut through


def merge(starts: Ints, ends: Ints) -> Ints:
    """The parts from `starts` (in ascending order) to `ends`, those that touch or overlap joined, [K,2]."""
    if not len(starts):
        return np.zeros((0, 2), np.int64)
    reach = np.maximum.accumulate(ends)
    begins = np.append(True, starts[1:] > reach[:-1])
    first = np.flatnonzero(begins)
    return np.stack([starts[first], reach[np.append(first[1:] - 1, len(starts) - 1)]], 1)


def of_windows(places: Ints, length: int, units: Units, text: str) -> Ints:
    """The parts of `text` under the windows of `length` units from `places` (ascending), with the marks beside them."""
    runs = merge(places, places + length)
    found = np.empty_like(runs)
    for number, (first, last) in enumerate(runs.tolist()):
        low = int(units.ends[first - 1]) if first else 0
        high = int(units.starts[last]) if last < len(units) else len(text)
        start, end = int(units.starts[first]), int(units.ends[last - 1])
        while start > low and not text[start - 1].isspace():
            start -= 1
        while end < high and not text[end].isspace():
            end += 1
        found[number] = start, end
    return found


def widen(spans: Ints, margin: int, text: str) -> Ints:
    """The parts with `margin` characters more on both sides, and to the ends of words; joined where they meet."""
    if not margin or not len(spans):
        return spans
    wide = []
    for start, end in spans.tolist():
        start, end = max(0, start - margin), min(len(text), end + margin)
        before = re.search(r"\S*\Z", text[max(0, start - WORD) : start])
        behind = re.match(r"\S*", text[end : end + WORD])
        # a word that is cut through goes whole; not what was written without spaces
        whole = [len(match[0]) if match and len(match[0]) < WORD else 0 for match in (before, behind)]
        into = start < len(text) and not text[start].isspace(), end > 0 and not text[end - 1].isspace()
        wide.append((start - whole[0] * into[0], end + whole[1] * into[1]))
    both = np.array(wide, np.int64)
    return merge(both[:, 0], both[:, 1])


def cut(text: str, spans: Ints, *, shortest: int = 1) -> list[str]:
    """What is left of `text` between the parts, [≤ K+1]; pieces with fewer than `shortest` characters go too."""
    edges = [0, *spans.ravel().tolist(), len(text)]
    pieces = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return [piece for piece in pieces if len(piece.strip()) >= max(1, shortest)]


def glue(pieces: list[str]) -> str:
    """Pieces as one text: between two of them a blank line, a line end or a space, the widest that was there."""
    text = pieces[0] if pieces else ""
    for piece in pieces[1:]:
        left, right = text.rstrip(), piece.lstrip()
        space = text[len(left) :] + piece[: len(piece) - len(right)]
        lines = space.count("\n")
        text = left + ("\n\n" if lines > 1 else "\n" if lines else " ") + right
    return text


def without(text: str, parts: Ints, shortest: int = 1) -> str:
    """`text` without the parts, which may overlap and stand in any order; see `cut` and `glue`."""
    if not len(parts):
        return text
    ordered = parts[np.argsort(parts[:, 0], kind="stable")]
    return glue(cut(text, merge(ordered[:, 0], ordered[:, 1]), shortest=shortest))
