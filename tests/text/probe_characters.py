"""What the regular expressions of `tokenizers` take for a letter, a digit, white space …: asked over all code points.

    python -m tests.text.probe_characters > src/openbook/text/characters.py

writes the table anew, for a release of the library that knows another version of Unicode.
"""

from __future__ import annotations

import base64
import sys
import zlib

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from openbook.text import characters

EVERY = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
HEAD = '''"""The kinds of all characters, as the regular expressions of the `tokenizers` library see them (Unicode 16).

Written by tests/text/probe_characters.py, which asks that library. For each property, runs of code points: the
length of a run and the number of its value, as bytes of seven bits, lowest first; zlib, base 85.
"""

from __future__ import annotations

import base64
import functools
import zlib

import numpy as np
from numpy.typing import NDArray

LAST = 0x10FFFF
CATEGORIES = (
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
    "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cs", "Cn",
)  # fmt: skip


@functools.cache
def values(name: str) -> NDArray[np.uint8]:
    """The value of a property for every code point: of "category" a place in CATEGORIES, of "space" (`\\\\s`),
    "Han" and "numeric" (what Rust's `char::is_numeric` says) 0 or 1."""
    numbers: list[int] = []
    number = shift = 0
    for byte in zlib.decompress(base64.b85decode("".join(_RUNS[name]))):
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    return np.repeat(np.array(numbers[1::2], np.uint8), numbers[::2])


_RUNS = {
'''


def members(pattern: str, among: str = EVERY) -> NDArray[np.bool_]:
    """Whether each code point (if it is `among` others, in their order) matches a pattern of one character."""
    found = np.zeros(sys.maxunicode + 1, bool)
    split = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), behavior="removed", invert=True)
    for piece, _ in split.pre_tokenize_str(among):
        found[ord(piece[0]) : ord(piece[-1]) + 1] = True
    return found


def categories() -> NDArray[np.uint8]:
    """The general category of each code point: borders between runs by one long pattern, then one of each run."""
    kinds = [kind for kind in characters.CATEGORIES if kind != "Cs"]
    split = pre_tokenizers.Split(Regex("|".join(rf"\p{{{kind}}}+" for kind in kinds)), behavior="isolated")
    runs = [(ord(piece[0]), ord(piece[-1]) + 1) for piece, _ in split.pre_tokenize_str(EVERY)]
    found = np.zeros(sys.maxunicode + 1, np.uint8)
    for kind in kinds:
        single = pre_tokenizers.Split(Regex(rf"\p{{{kind}}}"), behavior="removed", invert=True)
        ours = {ord(piece) for piece, _ in single.pre_tokenize_str("".join(chr(start) for start, _ in runs))}
        for start, end in runs:
            if start in ours:
                found[start:end] = characters.CATEGORIES.index(kind)
    found[0xD800:0xE000] = characters.CATEGORIES.index("Cs")
    return found


def numeric() -> NDArray[np.bool_]:
    """Whether each code point is one that the step "Digits" splits off."""
    split = pre_tokenizers.Digits(individual_digits=False)
    found = np.zeros(sys.maxunicode + 1, bool)
    for piece, (start, end) in split.pre_tokenize_str("".join(f"a{char}a" for char in EVERY if char != "a")):
        if end - start == 1 and piece != "a":
            found[ord(piece)] = True
    return found


def probe(name: str) -> NDArray[np.uint8]:
    """The values of a property, as `characters.values` gives them."""
    if name == "category":
        return categories()
    if name == "numeric":
        return numeric().astype(np.uint8)
    found = members(r"\s" if name == "space" else rf"\p{{{name}}}").astype(np.uint8)
    found[0xD800:0xE000] = 0  # a run may pass over the surrogates
    return found


def packed(values: NDArray[np.uint8]) -> str:
    """The runs of `values` as text."""
    starts = np.flatnonzero(np.diff(values, prepend=255))
    data = bytearray()
    for length, value in zip(np.diff(starts, append=len(values)).tolist(), values[starts].tolist(), strict=True):
        for number in (length, value):
            while number >= 128:
                data.append(number & 127 | 128)
                number >>= 7
            data.append(number)
    return base64.b85encode(zlib.compress(bytes(data), 9)).decode()


if __name__ == "__main__":
    print(HEAD, end="")
    for name in ("category", "space", "Han", "numeric"):
        text = packed(probe(name))
        print(f'    "{name}": (')
        for at in range(0, len(text), 108):
            print(f'        "{text[at : at + 108]}"')
        print("    ),")
    print("}")
