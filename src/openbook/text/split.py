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

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.text import characters
from openbook.text.pattern import MOST_CLASSES, Either, Item, Next, Place, Run, Set, Unsupported, parse

DONE, RUN, EITHER, NEXT, LINE, END = range(6)
CLASSES, BRANCHES = MOST_CLASSES, 24  # bits of a word: classes of a character, alternatives that can begin with it
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of GPT-2


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
        return _Compiler({"digit": digits}).program(Run("digit", 1, 1 if step["individual_digits"] else -1))
    if step["type"] != "Split":
        raise Unsupported(f"the step {step['type']}")
    pattern, behavior = step["pattern"], step["behavior"]
    if "Regex" not in pattern or behavior not in ("Isolated", "Removed"):
        raise Unsupported("a step that joins pieces")
    removed, inverted = behavior == "Removed", bool(step.get("invert"))
    return compile_pattern(pattern["Regex"], matches=not removed or inverted, rest=not removed or not inverted)


@functools.lru_cache(maxsize=32)
def compile_pattern(pattern: str, *, matches: bool = True, rest: bool = True) -> Program:
    """The program of a regular expression, read only. Raises `Unsupported`."""
    tree, classes = parse(pattern)
    return _Compiler(classes).program(tree, matches, rest)


class _Compiler:
    """Nodes from the end of the pattern to its beginning, so that each knows its next."""

    def __init__(self, classes: Mapping[str, Set]) -> None:
        self.classes = classes
        self.numbers: dict[str, int] = {}
        self.nodes: list[tuple[int, int, int, int, int]] = [(DONE, 0, 0, 0, 0)]
        self.branches: list[int] = []

    def program(self, tree: Item, matches: bool = True, rest: bool = True) -> Program:
        sequences = tree.sequences if isinstance(tree, Either) else ((tree,),)
        firsts = [_first(sequence) for sequence in sequences]
        if len(sequences) > BRANCHES or any(empty for _, empty in firsts):
            raise Unsupported("too many alternatives, or one that can be empty")
        self.branches = [0] * len(sequences)
        for number, sequence in enumerate(sequences):
            self.branches[number] = self.sequence(sequence, 0)
        words = np.zeros(characters.LAST + 1, np.uint64)
        for name, bit in self.numbers.items():
            words |= self.classes[name].astype(np.uint64) << np.uint64(bit)
        for number, (names, _) in enumerate(firsts):
            begins = np.logical_or.reduce([self.classes[name] for name in names])
            words |= begins.astype(np.uint64) << np.uint64(CLASSES + number)
        pages, masks = _paged(words)
        nodes = np.array(self.nodes, np.int32)
        return Program(nodes, np.array(self.branches, np.int32), pages, masks, matches, rest)

    def sequence(self, items: tuple[Item, ...], after: int) -> int:
        for item in reversed(items):
            after = self.item(item, after)
        return after

    def item(self, item: Item, after: int) -> int:
        if isinstance(item, Run):
            made = (RUN, after, self.number(item.name), item.least, item.most)
        elif isinstance(item, Next):
            made = (NEXT, after, self.number(item.name), item.wanted, 0)
        elif isinstance(item, Place):
            made = (LINE if item.of_line else END, after, 0, 0, 0)
        else:
            targets = [self.sequence(sequence, after) for sequence in item.sequences]
            made = (EITHER, 0, len(self.branches), len(targets), 0)
            self.branches += targets
        self.nodes.append(made)
        return len(self.nodes) - 1

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


def _first(items: tuple[Item, ...]) -> tuple[set[str], bool]:
    """Classes of the characters with which a sequence can begin, and whether it can be empty."""
    names: set[str] = set()
    for item in items:
        if isinstance(item, Run):
            names.add(item.name)
            if item.least:
                return names, False
        elif isinstance(item, Either):
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
