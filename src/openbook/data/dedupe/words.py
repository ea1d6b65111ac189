"""Text → units (words or characters) → hashes of their n-grams: what all comparisons of texts are made of.

Texts are compared without case, punctuation and white space. Every code point is one of four kinds:

    part      letters, digits and the marks on them: neighbours make a word
    alone     a character of a script written without spaces (Han, kana, Thai, Lao, Khmer, Burmese): a word by itself
    nothing   what is not seen (soft hyphen, joiners, direction marks): passed over
    between   all else: it ends a word

and is folded by itself (lower case of its compatibility form: `Ａ` and `A` are `a`), so that a unit keeps its place in
the text. Hashes are 64 bits: Horner's rule mod 2^64, then MurmurHash3's finaliser. The native operator
(native/minhash.cpp) gives what the reference beside it gives, bit for bit; `library()` is where one is chosen.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook.errors import UsageError
from openbook.native import minhash as native

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

UNITS = ("words", "characters")
BETWEEN, PART, ALONE, NOTHING = range(4)
TABLE = 0x32400  # code points; what lies behind them is between
SPACELESS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF),
)  # fmt: skip
CHARACTER, UNIT = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # Horner's factors
ZERO_WIDTH_SPACE = 0x200B  # not seen, but it ends a word

library = native.library


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one text, in order."""

    hashes: Hashes  # [M]
    starts: Ints  # [M] its first character
    ends: Ints  # [M] the character behind its last

    def __len__(self) -> int:
        return len(self.hashes)


@functools.cache
def table() -> NDArray[np.uint32]:
    """Of each code point its kind (from bit 21 on) and what it is folded to, [TABLE]."""
    entries = np.fromiter((_entry(chr(code)) for code in range(TABLE)), np.uint32, TABLE)
    spaceless = np.zeros(TABLE, bool)
    for first, last in SPACELESS:
        spaceless[first : last + 1] = True
    alone = spaceless & (entries >> 21 == PART)
    entries[alone] += np.uint32((ALONE - PART) << 21)
    return entries


def _entry(character: str) -> int:
    category = unicodedata.category(character)
    if category[0] not in "LNM":
        unseen = category == "Cf" and ord(character) != ZERO_WIDTH_SPACE
        return NOTHING << 21 if unseen else BETWEEN
    plain = unicodedata.normalize("NFKC", character)
    folded = (plain if len(plain) == 1 else character).lower()
    return PART << 21 | ord(folded if len(folded) == 1 else character)


def units(text: str, unit: str = "words") -> Units:
    """The units of `text`. One of "characters" is a character of a word, or all that stands between two words."""
    check_unit(unit)
    found = library()
    if found is None:
        return units_reference(text, unit)
    data = text.encode("utf-8", "surrogatepass")
    room = len(data) if unit == "characters" else (len(data) + 1) // 2  # what is alone takes three bytes
    hashes, starts, ends = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    entries = table()
    count = found.openbook_minhash_units(
        data, len(data), entries.ctypes.data, len(entries), unit == "characters",
        hashes.ctypes.data, starts.ctypes.data, ends.ctypes.data,
    )  # fmt: skip
    return Units(hashes[:count], starts[:count], ends[:count])  # what lies behind was never touched: it has no pages


def units_reference(text: str, unit: str = "words") -> Units:
    """The same in numpy."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    entries = np.where(codes < TABLE, table()[np.minimum(codes, TABLE - 1)], 0)
    seen = np.flatnonzero(entries >> 21 != NOTHING)
    kinds, folded = entries[seen] >> 21, (entries[seen] & ((1 << 21) - 1)).astype(np.uint64)
    before = np.concatenate([[BETWEEN], kinds[:-1]])
    if unit == "characters":
        begins = (kinds != BETWEEN) | (before != BETWEEN)
        folded[kinds == BETWEEN] = ord(" ")
        inside = np.flatnonzero(kinds != BETWEEN)
        if len(inside):  # not what stands before the first word, nor behind the last
            begins[: inside[0]] = begins[inside[-1] + 1 :] = False
            group = np.cumsum(begins)
            ends = np.searchsorted(group[: inside[-1] + 1], np.arange(1, group[-1] + 1), side="right") - 1
        else:
            begins[:], ends = False, np.zeros(0, np.int64)
        first = np.flatnonzero(begins)
        hashes = mix(folded[first] + np.uint64(1))
    else:
        begins = (kinds == ALONE) | ((kinds == PART) & (before != PART))
        first = np.flatnonzero(begins)
        follows = (kinds == PART) & (before == PART)
        stops = np.flatnonzero(~follows)
        ends = np.concatenate([stops, [len(kinds)]])[np.searchsorted(stops, first, side="right")] - 1
        hashes = mix(_horner(folded + np.uint64(1), first, ends + 1 - first, CHARACTER))
    return Units(hashes, seen[first].astype(np.int64), (seen[ends] + 1).astype(np.int64))


def _horner(values: Hashes, first: Ints, lengths: Ints, factor: int) -> Hashes:
    """Σ values[first + i] · factor^(length - 1 - i) mod 2^64 of each run."""
    sums = np.zeros(len(first), np.uint64)
    for i in range(int(lengths.max(initial=0))):
        going = np.flatnonzero(lengths > i) if i else slice(None)
        sums[going] = sums[going] * np.uint64(factor) + values[first[going] + i]
    return sums


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """The hashes of the runs of `n` units, [max(0, M - n + 1)]."""
    if n < 1:
        raise UsageError(f"An n-gram has at least one unit: got n={n}.")
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    found = library()
    if found is None:
        return ngrams_reference(hashes, n)
    hashes, out = np.ascontiguousarray(hashes), np.empty(count, np.uint64)
    found.openbook_minhash_ngrams(hashes.ctypes.data, len(hashes), n, out.ctypes.data)
    return out


def ngrams_reference(hashes: Hashes, n: int) -> Hashes:
    """The same in numpy."""
    first = np.arange(len(hashes) - n + 1, dtype=np.int64)
    return mix(_horner(hashes, first, np.full(len(first), n), UNIT))


def mix(hashes: Hashes) -> Hashes:
    """MurmurHash3's finaliser for 64 bits: a bijection whose every bit depends on every bit."""
    shift = np.uint64(33)
    hashes = (hashes ^ hashes >> shift) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ hashes >> shift) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ hashes >> shift


def check_unit(unit: str) -> None:
    """Raises `UsageError` for what is no unit."""
    if unit not in UNITS:
        raise UsageError(f"`unit` is {' or '.join(UNITS)}: got {unit!r}.")


def folded(text: str, found: Units, first: int, last: int) -> list[str]:
    """The words `first` to `last` - 1 of `text` as they are compared: without case and marks that are not seen."""
    bounds = zip(found.starts[first:last].tolist(), found.ends[first:last].tolist(), strict=True)
    return [text[start:end].translate(_FOLDS) for start, end in bounds]


class _Folds(dict[int, int | None]):
    """What each code point is folded to, as `str.translate` wants it; filled as it is asked."""

    def __missing__(self, code: int) -> int | None:
        entry = int(table()[code]) if code < TABLE else BETWEEN << 21
        self[code] = entry & ((1 << 21) - 1) if entry >> 21 in (PART, ALONE) else None
        return self[code]


_FOLDS = _Folds()
