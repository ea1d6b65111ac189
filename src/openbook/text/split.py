"""The patterns by which byte-level tokenizers part a text into words, compiled for the native splitter.

Published patterns are all made of the same few things: classes of characters with a count, a choice of short endings
(`'s|'t|…`), a look at the next character. A *program* is a graph of such nodes, in which no node is repeated: a run of
one class is one node, so a match is found by a walk of bounded depth. Alternatives are tried in their order and runs
give characters back, as in any backtracking matcher, so what is matched is what Oniguruma (the library behind
`tokenizers.Regex`) matches. Anything else (captures, lazy counts, looks behind) raises `Unsupported`: the pattern is
then left to that library.

    kind   next   a       b        c            what the node does
    DONE    –     –       –        –            the match ends here
    RUN    node   class   least    most         characters of a class; most -1: any number, -2: any, none given back
    EITHER  –     first   count    –            the nodes branches[first : first + count], in turn
    NEXT   node   class   wanted   –            the next character is (1) or is not (0) of a class; the end is of none
    LINE   node   –       –        –            at the end of a line: before a newline or at the end
    END    node   –       –        –            at the end
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.text import characters

DONE, RUN, EITHER, NEXT, LINE, END = range(6)
CLASSES, BRANCHES = 40, 24  # bits of a word: classes of a character, and alternatives that can begin with it
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of GPT-2
_PLAIN = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7, "e": 27}
_FOLDS = {"s": "ſ", "k": "\u212a"}  # what else a letter of ASCII is equal to, whatever its case
_JOINED = ("ff", "fi", "fl", "ss", "st")  # two letters that one character is equal to

Set = NDArray[np.bool_]


class Unsupported(Exception):
    """A pattern, or a step of a tokenizer, that is not done here."""


@dataclass(frozen=True)
class Program:
    """One step of splitting: matches of a pattern, and what lies between them."""

    nodes: NDArray[np.int32]  # [N,5]: kind, next, a, b, c
    branches: NDArray[np.int32]  # targets of choices; those of the whole pattern come first
    pages: NDArray[np.uint16]  # page of the masks for each 256 code points
    masks: NDArray[np.uint64]  # [P,256] classes of a character, and from bit CLASSES on the branches it can begin
    keep_matches: bool = True
    keep_rest: bool = True


def compile_steps(pre_tokenizer: Mapping[str, Any] | None) -> tuple[list[Program], bool]:
    """The steps of a byte-level tokenizer.json's `pre_tokenizer`, and whether a text gets a space before it."""
    steps = _flat(pre_tokenizer or {})
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise Unsupported("not byte-level")
    programs = [_step(step) for step in steps[:-1]]
    last = steps[-1]
    if last.get("add_prefix_space") and programs:
        raise Unsupported("a space before every piece")
    if last.get("use_regex", True):
        programs.append(compile_pattern(WORDS))
    return programs, bool(last.get("add_prefix_space"))


def _flat(step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if step.get("type") == "Sequence":
        return [one for part in step["pretokenizers"] for one in _flat(part)]
    return [step] if step else []


def _step(step: Mapping[str, Any]) -> Program:
    if step["type"] == "Digits":
        digits = characters.values("numeric") == 1
        return _Compiler({"digit": digits}).program(_Run("digit", 1, 1 if step["individual_digits"] else -1))
    if step["type"] != "Split":
        raise Unsupported(f"the step {step['type']}")
    pattern, behavior = step["pattern"], step["behavior"]
    if "Regex" not in pattern or behavior not in ("Isolated", "Removed"):
        raise Unsupported("a step that joins pieces")
    removed, inverted = behavior == "Removed", bool(step.get("invert"))
    return compile_pattern(pattern["Regex"], matches=not removed or inverted, rest=not removed or not inverted)


def compile_pattern(pattern: str, *, matches: bool = True, rest: bool = True) -> Program:
    """The program of a regular expression. Raises `Unsupported`."""
    parser = _Parser(pattern)
    tree = parser.choice()
    if parser.at < len(pattern):
        raise Unsupported("an unmatched bracket")
    return _Compiler(parser.classes).program(tree, matches, rest)


# ------------------------------------------------------------------------------------------------ what is read


@dataclass(frozen=True)
class _Run:
    name: str  # of its class
    least: int = 1
    most: int = 1


@dataclass(frozen=True)
class _Next:
    name: str
    wanted: int


@dataclass(frozen=True)
class _Place:
    kind: int


@dataclass(frozen=True)
class _Either:
    sequences: tuple[tuple[_Item, ...], ...]


_Item = _Run | _Next | _Place | _Either


@dataclass
class _Parser:
    """Reads a pattern; a class is known by what it holds."""

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

    def choice(self) -> _Either:
        sequences = [self.sequence()]
        while self.take("|"):
            sequences.append(self.sequence())
        return _Either(tuple(sequences))

    def sequence(self) -> tuple[_Item, ...]:
        items: list[_Item] = []
        letters = ""
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            before = self.pattern[self.at]
            items.append(self.counted(self.atom()))
            letters = letters[-1:] + before.lower() if self.folded else ""
            if letters in _JOINED:
                raise Unsupported("letters that one character is equal to")
        return tuple(items)

    def atom(self) -> _Item:
        if self.take("("):
            return self.group()
        if self.take("$"):
            return _Place(LINE)
        if self.take("\\z"):
            return _Place(END)
        return _Run(self.named(self.one()))

    def group(self) -> _Item:
        before = self.folded
        if self.take("?!") or self.take("?="):
            wanted = int(self.pattern[self.at - 1] == "=")
            item: _Item = _Next(self.named(self.one()), wanted)
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

    def counted(self, item: _Item) -> _Item:
        if self.at < len(self.pattern) and self.pattern[self.at] in "?*+{":
            sign = self.char()
            least, most = self.bounds() if sign == "{" else {"?": (0, 1), "*": (0, -1), "+": (1, -1)}[sign]
            if self.peek("?") or self.peek("*") or self.peek("{"):
                raise Unsupported("a lazy count, or a count of a count")
            if self.take("+"):
                if (least, most, sign) == (0, 1, "?"):
                    most = -3  # one if there is one
                elif sign != "{":
                    most = -2
                else:
                    raise Unsupported("a count of a count")
            if isinstance(item, _Either) and (least, most) == (0, 1):
                return _Either((*item.sequences, ()))
            if not isinstance(item, _Run):
                raise Unsupported("a repeated group")
            return _Run(item.name, least, most)
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
            return _property(name) != negated
        if char in "sSdD":
            members = characters.values("space") == 1 if char in "sS" else _property("Nd")
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
        if self.folded and (negated or not (whole == True).all()):  # noqa: E712
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


def _property(name: str) -> Set:
    """The characters of a general category, of a group of them (`L`), or of the one script that patterns name."""
    if name == "Han":
        return characters.values("Han") == 1
    numbers = [number for number, category in enumerate(characters.CATEGORIES) if category.startswith(name)]
    if not numbers or not name:
        raise Unsupported(f"the property {name}")
    return np.isin(characters.values("category"), numbers)


# ------------------------------------------------------------------------------------------------ what is made of it


class _Compiler:
    """Nodes from the end of the pattern to its beginning, so that each knows its next."""

    def __init__(self, classes: Mapping[str, Set]) -> None:
        self.classes = classes
        self.numbers: dict[str, int] = {}
        self.nodes: list[tuple[int, int, int, int, int]] = [(DONE, 0, 0, 0, 0)]
        self.branches: list[int] = []

    def program(self, tree: _Item, matches: bool = True, rest: bool = True) -> Program:
        sequences = tree.sequences if isinstance(tree, _Either) else ((tree,),)
        firsts = [_first(sequence) for sequence in sequences]
        if len(sequences) > BRANCHES or any(empty for _, empty in firsts):
            raise Unsupported("too many alternatives, or one that can be empty")
        self.branches = [0] * len(sequences)
        for number, sequence in enumerate(sequences):
            self.branches[number] = self.sequence(sequence, 0)
        if len(self.numbers) > CLASSES:
            raise Unsupported("too many classes")
        words = np.zeros(characters.LAST + 1, np.uint64)
        for name, bit in self.numbers.items():
            words |= self.classes[name].astype(np.uint64) << np.uint64(bit)
        for number, (names, _) in enumerate(firsts):
            begins = np.logical_or.reduce([self.classes[name] for name in names])
            words |= begins.astype(np.uint64) << np.uint64(CLASSES + number)
        pages, masks = _paged(words)
        nodes = np.array(self.nodes, np.int32)
        return Program(nodes, np.array(self.branches, np.int32), pages, masks, matches, rest)

    def sequence(self, items: tuple[_Item, ...], after: int) -> int:
        for item in reversed(items):
            after = self.item(item, after)
        return after

    def item(self, item: _Item, after: int) -> int:
        if isinstance(item, _Run):
            made = (RUN, after, self.number(item.name), item.least, item.most)
        elif isinstance(item, _Next):
            made = (NEXT, after, self.number(item.name), item.wanted, 0)
        elif isinstance(item, _Place):
            made = (item.kind, after, 0, 0, 0)
        else:
            targets = [self.sequence(sequence, after) for sequence in item.sequences]
            made = (EITHER, 0, len(self.branches), len(targets), 0)
            self.branches += targets
        self.nodes.append(made)
        return len(self.nodes) - 1

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


def _first(items: tuple[_Item, ...]) -> tuple[set[str], bool]:
    """Classes of the characters with which a sequence can begin, and whether it can be empty."""
    names: set[str] = set()
    for item in items:
        if isinstance(item, _Run):
            names.add(item.name)
            if item.least:
                return names, False
        elif isinstance(item, _Either):
            parts = [_first(sequence) for sequence in item.sequences]
            names.update(*(part for part, _ in parts))
            if not any(empty for _, empty in parts):
                return names, False
    return names, True


def _paged(words: NDArray[np.uint64]) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """256 code points a page, equal pages once."""
    known: dict[bytes, int] = {}
    pages = [known.setdefault(page.tobytes(), len(known)) for page in words.reshape(-1, 256)]
    masks = np.frombuffer(b"".join(known), np.uint64).reshape(-1, 256)
    return np.array(pages, np.uint16), masks


def characters_where(wanted: Callable[[str], bool], among: Set) -> Set:
    """The characters `among` others of which something holds."""
    found = np.zeros(characters.LAST + 1, bool)
    codes = np.flatnonzero(among).tolist()
    found[[code for code in codes if wanted(chr(code))]] = True
    return found
