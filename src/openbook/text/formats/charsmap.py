"""SentencePiece's table of characters (`precompiled_charsmap`), followed exactly by the steps of the backend.

The table is a trie of strings and what each becomes; at every place of a text the longest string in the trie wins. It
is written as a double array (darts-clone): u32 size of the array, the array, the replacements with a NUL after each.

The backend's own step for it looks at one user-perceived character at a time and takes the shortest string, so it loses
marks (`ﬁ` with an accent) and does not compose what is longer than five bytes (Hangul letters, kana with marks).
Here two characters that occur in no text keep things apart for a while:

    1  WALL after a character that becomes several, or none, where a mark follows: the table does not join them; nor
       does it join anything to a user-defined piece, or several marks that one character becomes to what is before it
    2  GAP before everything but plain ASCII: now every character stands alone
    3  the backend's step, which for single characters follows the table; the gaps are taken away
    4  WALL between characters that NFC would join or reorder, but the table does not join
    5  NFC, which now joins exactly what the table joins; the walls are taken away

That NFC and the table agree on every string of the table is checked when a model is read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from tokenizers import normalizers

from openbook.errors import TokenizerError
from openbook.text.formats.found import State, substitute

WALL, GAP = "\U000e0fff", "\U000e0ffe"  # never assigned, no part of a user-perceived character, compose with nothing
OTHER = "\U000e0ffd"  # what a text that does hold one of them is read as
_NFC = normalizers.NFC().normalize_str  # of the backend: it may know an older Unicode than the table
_NEWER = 64  # strings that the table joins and the backend's NFC does not know yet; they are replaced one by one
_KEYS = 1 << 20
_LONGEST = 64  # bytes of a key

Product = tuple[frozenset[str], ...]


@dataclass(frozen=True)
class _Plan:
    """What the steps of one table need: classes of characters, the pattern for walls, strings replaced by hand."""

    several: str
    raw: str
    marks: str
    by_hand: Mapping[str, str]
    apart: str


def steps(charsmap: bytes, where: Path, whole: Sequence[str] = ()) -> list[State]:
    """The steps of normalisation that do what the table says, but join nothing to the strings that are `whole`.

    TokenizerError: the table is damaged, or cannot be followed.
    """
    try:
        plan = _plan(charsmap)
    except ValueError as error:
        raise TokenizerError(f"The table of characters in '{where}' cannot be used: {error}.") from error
    alone: list[State] = [
        substitute(r"(?=[^\x20-\x7E])(?<=[\s\S])", GAP),
        {"type": "Precompiled", "precompiled_charsmap": b64encode(charsmap).decode("ascii")},
        substitute(GAP, "", literal=True),
    ]
    kept = substitute(f"[{WALL}{GAP}]", OTHER)
    if plan is None:
        return [kept, *alone]
    ends = [part for part in [plan.several, *map(re.escape, whole)] if part]
    first = [substitute(f"(?={plan.raw})(?<={'|'.join(ends)})", WALL)] if ends else []
    first += [substitute(rf"(?={plan.marks})(?<=[^{WALL}])", WALL)] if plan.marks else []
    by_hand = [substitute(key, plan.by_hand[key], literal=True) for key in sorted(plan.by_hand, key=len, reverse=True)]
    last = [substitute(plan.apart, WALL), {"type": "NFC"}, substitute(WALL, "", literal=True)]
    return [kept, *first, *alone, *by_hand, *last]


def changes(charsmap: bytes, text: str, where: Path) -> bool:
    """Whether the table changes anything in `text`. TokenizerError: it is damaged."""
    try:
        return any(key in text for key in table(charsmap))
    except ValueError as error:
        raise TokenizerError(f"The table of characters in '{where}' cannot be used: {error}.") from error


@lru_cache(maxsize=4)
def _plan(charsmap: bytes) -> _Plan | None:
    """None where nothing is joined. ValueError: the table cannot be followed."""
    keys = table(charsmap)
    joined = _joined(keys)
    if not joined:
        return None
    newer = {key: value for key, value in joined.items() if _NFC(key) != value}
    older = joined.keys() - newer.keys()
    followers = _followers() | {character for key in older for character in key[1:]}
    several = [key for key, value in keys.items() if len(key) == 1 and len(value) != 1]
    raw = followers | {key for key, value in keys.items() if len(key) == 1 and value[:1] in followers}
    marks = [key for key in several if keys[key][:1] in followers]
    return _Plan(
        several=_class(several) if several else "",
        raw=_class(raw, marks=True),
        marks=_class(marks) if marks else "",
        by_hand=newer,
        apart=_apart(older, followers),
    )


@lru_cache(maxsize=4)
def table(charsmap: bytes) -> Mapping[str, str]:
    """The strings of the table and what they become. ValueError: it is no such table."""
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 8 or size % 4 or size > len(charsmap) - 4:
        raise ValueError("it is cut off")
    units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4)
    values = charsmap[4 + size :]
    found = {}
    for key, at in _leaves(units):
        found[key.decode("utf-8")] = values[at : values.index(b"\0", at)].decode("utf-8")
    if "" in found:
        raise ValueError("it has a rule for nothing")
    return found


def _leaves(units: np.ndarray) -> list[tuple[bytes, int]]:
    """(key, value) of a double array. ValueError: it goes in circles or beyond its end."""
    places = np.arange(len(units), dtype=np.int64)
    units = units.astype(np.int64)
    bases = places ^ ((units >> 10) << ((units & 0x200) >> 6))
    labels = units & 0xFF
    inner = np.flatnonzero((units >> 31 == 0) & (labels > 0))  # nodes that have a parent
    order = np.argsort((inner ^ labels[inner]), kind="stable")
    children = inner[order]
    parents = children ^ labels[children]  # what the parent has as its base
    found: list[tuple[bytes, int]] = []
    level, keys = np.zeros(1, dtype=np.int64), [b""]
    for _ in range(_LONGEST):
        if int((bases[level] | 0xFF).max()) >= len(units):
            raise ValueError("a place in it lies beyond the end")  # of the backend, which would look there
        starts, ends = (np.searchsorted(parents, bases[level], side=side) for side in ("left", "right"))
        if int((ends - starts).sum()) + len(found) > _KEYS:
            break
        rows = [
            (key + bytes([int(labels[place])]), int(place))
            for key, start, end in zip(keys, starts.tolist(), ends.tolist(), strict=True)
            for place in children[start:end]
        ]
        for key, place in rows:
            if units[place] >> 8 & 1:
                if not 0 <= bases[place] < len(units):
                    raise ValueError("a value lies beyond the end")
                found.append((key, int(units[bases[place]]) & 0x7FFFFFFF))
        if not rows:
            return found
        level, keys = np.array([place for _, place in rows], dtype=np.int64), [key for key, _ in rows]
    raise ValueError("its keys do not end")


def _joined(keys: Mapping[str, str]) -> dict[str, str]:
    """The strings of several characters that the table joins, each character already as the table has it alone.

    ValueError where NFC would not do the same.
    """
    long = {key: value for key, value in keys.items() if len(key) > 1}
    joined = {"".join(keys.get(one, one) for one in key): value for key, value in long.items()}
    spellings: dict[str, int] = defaultdict(int)
    for key, value in keys.items():
        spellings[value] += len(key) == 1
    written = sum(math.prod(spellings[one] + (one not in keys) for one in key) for key in joined)
    newer = [key for key, value in joined.items() if _NFC(key) != value]
    tails = {character for key in joined.keys() - set(newer) for character in key[1:]}
    wrong = [key for key in joined if key[0] in tails] if len(newer) <= _NEWER else newer
    if joined:
        wrong += [value for key, value in keys.items() if len(key) == 1 and _NFC(value) != value]
        wrong += [one for one in _canonical() if one not in keys and _NFC(one) != one]
    if wrong or written != len(long):
        raise ValueError(
            f"it has {len(wrong) or abs(written - len(long))} rules of its own that no tokenizer.json can say exactly; "
            "train the model with SentencePiece's nmt_nfkc, nfkc or identity"
        )
    return joined


@cache
def _canonical() -> tuple[str, ...]:
    """All characters that NFC may take apart or put together."""
    every = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    return tuple(one for one in every if (parts := unicodedata.decomposition(one)) and parts[0] != "<")


@cache
def _followers() -> frozenset[str]:
    """All characters that NFC may join to, or reorder with, the one before."""
    seconds = {
        chr(int(parts[1], 16)) for one in _canonical() if len(parts := unicodedata.decomposition(one).split()) > 1
    }
    seconds |= set(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))
    every = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    marks = {one for one in every if unicodedata.combining(one)}
    composed = {one for one in _canonical() if unicodedata.normalize("NFD", one)[0] in seconds | marks}
    return frozenset(seconds | marks | composed)


def _apart(joined: Iterable[str], followers: Iterable[str]) -> str:
    """A pattern for the places between two characters that NFC may join or reorder, but the table does not join."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for key in joined:
        by_length[len(key)].append(key)
    inside = [
        "(?<=" + "".join(map(_class, product[:cut])) + ")" + "".join(map(_class, product[cut:]))
        for _, keys in sorted(by_length.items())
        for product in _products(keys)
        for cut in range(1, len(product))
    ]
    return rf"(?={_class(followers, marks=True)})(?<=[\s\S])(?!{'|'.join(inside)})"


def _products(keys: list[str]) -> list[Product]:
    """Strings of one length as products of classes of characters."""
    rows: set[Product] = {tuple(frozenset(character) for character in key) for key in keys}
    for place in range(len(keys[0]) - 1, -1, -1):
        groups: dict[tuple[Product, Product], set[str]] = defaultdict(set)
        for row in rows:
            groups[row[:place], row[place + 1 :]] |= row[place]
        rows = {(*before, frozenset(here), *after) for (before, after), here in groups.items()}
    return sorted(rows, key=lambda row: [min(characters) for characters in row])


def _class(characters: Iterable[str], marks: bool = False) -> str:
    """A class of a regular expression with these characters, as ranges; with `marks`, every combining mark too."""
    numbers = sorted(map(ord, characters))
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    spelled = [f"\\x{{{a:X}}}" if a == b else f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges]
    return "[" + (r"\p{M}" if marks else "") + "".join(spelled) + "]"
