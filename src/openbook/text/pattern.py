"""Regular expressions of the kind that tokenizers split by, read into a tree.

    choice     sequence|sequence
    sequence   items, one behind the other
    item       a run of one class of characters · a look at the next one · the end (of a line) · a choice in brackets

A class is a set of code points, known by what it holds; what belongs to `\\p{…}` and `\\s` stands in `characters.py`.
The meaning of all signs is that of Oniguruma, which reads them for the `tokenizers` library; what has no place in the
tree raises `Unsupported`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openbook.text import characters

MOST_CLASSES = 40  # bits of a character's mask
POSSESSIVE = -2  # any number of characters, of which none is given back
POSSESSIVE_ONE = -3
_PLAIN = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7, "e": 27}
_FOLDS = {"s": "ſ", "k": "\u212a"}  # what else a letter of ASCII is equal to, whatever its case
_JOINED = ("ff", "fi", "fl", "ss", "st")  # two letters that one character is equal to

Set = NDArray[np.bool_]


class Unsupported(Exception):
    """A pattern, or a step of a tokenizer, that is not done here."""


@dataclass(frozen=True)
class Run:
    """Characters of one class."""

    name: str  # of the class
    least: int = 1
    most: int = 1  # -1: any number


@dataclass(frozen=True)
class Next:
    """Whether the next character is of a class."""

    name: str
    wanted: int  # 1: it must be; 0: it must not


@dataclass(frozen=True)
class Place:
    """The end, or the end of a line."""

    of_line: bool


@dataclass(frozen=True)
class Either:
    """The first of some sequences behind which the rest of the pattern matches."""

    sequences: tuple[tuple[Item, ...], ...]


Item = Run | Next | Place | Either


def parse(pattern: str) -> tuple[Either, dict[str, Set]]:
    """The tree of a pattern, and its classes. Raises `Unsupported`."""
    parser = Parser(pattern)
    try:
        tree = parser.choice()
    except RecursionError as error:
        raise Unsupported("brackets in brackets in brackets") from error
    if parser.at < len(pattern):
        raise Unsupported("an unmatched bracket")
    return tree, parser.classes


@dataclass
class Parser:
    """Reads a pattern; `classes` are the sets of characters that it speaks of, by their names."""

    pattern: str
    at: int = 0
    folded: bool = False
    classes: dict[str, Set] = field(default_factory=dict)

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        found = self.peek(text)
        self.at += len(text) * found
        return found

    def char(self) -> str:
        if self.at >= len(self.pattern):
            raise Unsupported("an unfinished pattern")
        self.at += 1
        return self.pattern[self.at - 1]

    def choice(self) -> Either:
        sequences = [self.sequence()]
        while self.take("|"):
            sequences.append(self.sequence())
        return Either(tuple(sequences))

    def sequence(self) -> tuple[Item, ...]:
        items: list[Item] = []
        letters = ""
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            before = self.pattern[self.at]
            items.append(self.counted(self.atom()))
            letters = letters[-1:] + before.lower() if self.folded else ""
            if letters in _JOINED:
                raise Unsupported("letters that one character is equal to")
        return tuple(items)

    def atom(self) -> Item:
        if self.take("("):
            return self.group()
        if self.take("$"):
            return Place(of_line=True)
        if self.take("\\z"):
            return Place(of_line=False)
        return Run(self.named(self.one()))

    def group(self) -> Item:
        before = self.folded
        if self.take("?!") or self.take("?="):
            wanted = int(self.pattern[self.at - 1] == "=")
            item: Item = Next(self.named(self.one()), wanted)
        else:
            if self.take("?i:"):
                self.folded = True
            elif not self.take("?:") and self.peek("?"):
                raise Unsupported("a group of a kind of its own")
            item = self.choice()
        self.folded = before
        if not self.take(")"):
            raise Unsupported("more than one class in a look ahead, or an open bracket")
        return item

    def counted(self, item: Item) -> Item:
        if self.at < len(self.pattern) and self.pattern[self.at] in "?*+{":
            sign = self.char()
            least, most = self.bounds() if sign == "{" else {"?": (0, 1), "*": (0, -1), "+": (1, -1)}[sign]
            if self.peek("?") or self.peek("*") or self.peek("{"):
                raise Unsupported("a lazy count, or a count of a count")
            if self.take("+"):
                if (least, most, sign) == (0, 1, "?"):
                    most = POSSESSIVE_ONE
                elif sign != "{":
                    most = POSSESSIVE
                else:
                    raise Unsupported("a count of a count")
            if isinstance(item, Either) and (least, most) == (0, 1):
                return Either((*item.sequences, ()))
            if not isinstance(item, Run):
                raise Unsupported("a repeated group")
            return Run(item.name, least, most)
        return item

    def bounds(self) -> tuple[int, int]:
        end = self.pattern.find("}", self.at)
        least, comma, most = self.pattern[self.at : end].partition(",")
        numbers = [least or "0", (most or "-1") if comma else least]
        if end < 0 or not all(number.removeprefix("-").isdecimal() for number in numbers) or numbers[1] == "0":
            raise Unsupported("a count that is none")
        self.at = end + 1
        least_most = int(numbers[0]), int(numbers[1])
        if least_most[1] >= 0 and least_most[0] > least_most[1]:
            raise Unsupported("a count that is none")
        return least_most

    def named(self, members: Set) -> str:
        name = hashlib.sha256(np.packbits(members).tobytes()).hexdigest()
        self.classes.setdefault(name, members)
        if len(self.classes) > MOST_CLASSES:
            raise Unsupported("too many classes")
        return name

    # -- one character ------------------------------------------------------------------------------------------------

    def one(self) -> Set:
        """The characters that the next thing in the pattern stands for."""
        char = self.char()
        if char == "[":
            return self.bracket()
        if char == ".":
            return ~_only(10)
        if char == "\\":
            escaped = self.escape()
            return escaped if isinstance(escaped, np.ndarray) else self.literal(escaped)
        if char in "^*+?{})(|":
            raise Unsupported("a sign of its own meaning")
        return self.literal(ord(char))

    def literal(self, code: int) -> Set:
        members = _only(code)
        return self.fold(members) if self.folded else members

    def fold(self, members: Set) -> Set:
        if members[128:].any():
            raise Unsupported("letters beyond ASCII in any case")
        members = members.copy()
        for lower in map(chr, range(97, 123)):
            if members[ord(lower)] or members[ord(lower.upper())]:
                members[[ord(form) for form in (lower, lower.upper(), _FOLDS.get(lower, lower))]] = True
        return members

    def escape(self) -> Set | int:
        char = self.char()
        if char in "pP":
            end = self.pattern.find("}", self.at)
            if not self.take("{") or end < 0:
                raise Unsupported("a property without a name")
            negated = self.take("^") != (char == "P")
            name, self.at = self.pattern[self.at : end], end + 1
            return characters_of(name) != negated
        if char in "sSdD":
            members = characters.values("space") == 1 if char in "sS" else characters_of("Nd")
            return members != char.isupper()
        if char in "ux":
            return self.code(char)
        if char.isascii() and char.isalnum():
            if char not in _PLAIN:
                raise Unsupported(f"\\{char}")
            return _PLAIN[char]
        return ord(char)

    def code(self, kind: str) -> int:
        if self.take("{"):
            end = self.pattern.find("}", self.at)
            digits, self.at = self.pattern[self.at : end], end + 1
        else:
            size = 4 if kind == "u" else 2
            digits, self.at = self.pattern[self.at : self.at + size], self.at + size
        try:
            number = int(digits, 16)
        except ValueError as error:
            raise Unsupported("a code point that is none") from error
        if number > characters.LAST or (kind == "x" and number > 127 and len(digits) == 2):
            raise Unsupported("a code point that is none")
        return number

    def bracket(self) -> Set:
        """A class in square brackets, read behind the opening one."""
        negated = self.take("^")
        whole = np.ones(characters.LAST + 1, bool)
        members = ~whole
        first = True
        while first or not self.peek("]"):
            if self.peek("[:") or (first and self.peek("]")):
                raise Unsupported("a class that begins in its own way")
            first = False
            if self.take("&&"):
                whole, members = whole & members, np.zeros_like(members)
            elif self.take("["):
                members = members | self.bracket()
            else:
                members = members | self.part()
        self.at += 1
        if self.folded and (negated or not whole.all()):
            raise Unsupported("what is left out in any case")
        members = self.fold(members & whole) if self.folded else members & whole
        return ~members if negated else members

    def part(self) -> Set:
        """One character, range or escape of a class."""
        start = self.end_of_range()
        if isinstance(start, np.ndarray):
            return start
        if self.peek("-") and not self.peek("-]"):
            self.at += 1
            end = self.end_of_range()
            if isinstance(end, np.ndarray) or end < start:
                raise Unsupported("a range that is none")
            members = np.zeros(characters.LAST + 1, bool)
            members[start : end + 1] = True
            return members
        return _only(start)

    def end_of_range(self) -> Set | int:
        char = self.char()
        return self.escape() if char == "\\" else ord(char)


def _only(code: int) -> Set:
    members = np.zeros(characters.LAST + 1, bool)
    members[code] = True
    return members


def characters_of(name: str) -> Set:
    """The characters of a general category, of a group of them (`L`), or of the one script that patterns name."""
    if name == "Han":
        return characters.values("Han") == 1
    numbers = [number for number, category in enumerate(characters.CATEGORIES) if category.startswith(name)]
    if not numbers or not name:
        raise Unsupported(f"the property {name}")
    return np.isin(characters.values("category"), numbers)
