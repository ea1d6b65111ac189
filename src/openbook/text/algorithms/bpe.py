"""Byte-pair encoding (Sennrich et al. 2016, algorithm 1), over characters, or over bytes written as characters.

Training: count the pairs of neighbours in all words, make the most frequent one a token, and again until the vocabulary
is full. Encoding: start from characters and join, always the pair that was learned first.

With dropout (Provilkov et al. 2020, algorithm 2) each pair that could be joined is passed over with some probability,
anew at each step, so that a word is cut in other ways too.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Pair = tuple[int, int]
GONE = -1  # in the place of a symbol that has been joined to the one before


def train(
    words: Mapping[str, int],
    vocab: int,
    first: Sequence[str],
    *,
    spell: Callable[[str], Iterable[str]] = list,
    prefix: str = "",
    least: int = 2,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn from `words` and how often each occurs: the tokens by id, and the merges in the order they were learned.

    first    tokens that are there before: special tokens, then the alphabet
    spell    the symbols of a word at the beginning, all among `first`
    prefix   what marks a token that continues a word; it is not repeated inside of one
    least    how often a pair must occur

    Of equally frequent pairs the one with the smallest ids is taken.
    """
    tokens = list(dict.fromkeys(first))
    ids = {token: number for number, token in enumerate(tokens)}
    texts = [[ids[symbol] for symbol in spell(word)] for word in words]
    times = list(words.values())
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, text in enumerate(texts):
        for pair in pairwise(text):
            counts[pair] += times[place]
            places[pair].add(place)
    queue = _Queue()
    queue.add(places, counts)
    merges: dict[Pair, None] = {}
    while len(tokens) < vocab and (found := queue.pop(counts)):
        pair, where = found
        if counts[pair] < least:
            break
        token = tokens[pair[0]] + tokens[pair[1]].removeprefix(prefix)
        number = ids.setdefault(token, len(tokens))
        if number == len(tokens):
            tokens.append(token)
        merges.pop(pair, None)  # a pair that comes up again, spelled by other merges, takes its last place
        merges[pair] = None
        places = defaultdict(set)
        for place in where:
            for changed, by in join(texts[place], pair, number):
                counts[changed] += by * times[place]
                if by > 0:
                    places[changed].add(place)
        queue.add(places, counts)
    return tokens, [(tokens[left], tokens[right]) for left, right in merges]


def join(text: list[int], pair: Pair, token: int) -> list[tuple[Pair, int]]:
    """Write `token` for each `pair` in `text`, from the left; what pairs became more or fewer by that is returned.

    The pair itself is not counted down: it is done with.
    """
    changes = []
    at = 0
    while at < len(text) - 1:
        if (text[at], text[at + 1]) == pair:
            text[at : at + 2] = [token]
            if at > 0:
                changes += [((text[at - 1], pair[0]), -1), ((text[at - 1], token), 1)]
            if at + 1 < len(text):
                changes += [((pair[1], text[at + 1]), -1), ((token, text[at + 1]), 1)]
        at += 1
    return changes


class _Queue:
    """Pairs, the most frequent first, each with the words it occurs in. Counts may have changed since it came in."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Pair, int, set[int]]] = []
        self._serial = 0

    def add(self, places: Mapping[Pair, set[int]], counts: Mapping[Pair, int]) -> None:
        for pair, where in places.items():
            if counts[pair] > 0:
                self._serial += 1
                heapq.heappush(self._heap, (-counts[pair], pair, self._serial, where))

    def pop(self, counts: Mapping[Pair, int]) -> tuple[Pair, set[int]] | None:
        while self._heap:
            count, pair, _, where = heapq.heappop(self._heap)
            if counts[pair] == -count:
                return pair, where
            self.add({pair: where}, counts)
        return None


@dataclass(frozen=True)
class Bpe:
    """A trained vocabulary. `merges`: pair of ids → (rank, id of what they become)."""

    ids: Mapping[str, int]
    merges: Mapping[Pair, tuple[int, int]]
    unknown: int | None = None  # stands for a character that is not in the vocabulary
    fuse: bool = False  # one for a whole run of them
    bytes: bool = False  # its UTF-8 bytes stand for it, <0xE2>
    prefix: str = ""  # of symbols that continue a word
    suffix: str = ""  # of the symbol that ends it
    whole: bool = False  # a word that is a token stays one, whatever the merges say

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Bpe:
        """The model of a tokenizer.json."""
        ids, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
        merges = {}
        for rank, merge in enumerate(model["merges"]):
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            merges[ids[left], ids[right]] = (rank, ids[left + right.removeprefix(prefix)])
        return cls(
            ids=ids,
            merges=merges,
            unknown=ids.get(model.get("unk_token")),
            fuse=bool(model.get("fuse_unk")),
            bytes=bool(model.get("byte_fallback")),
            prefix=prefix,
            suffix=model.get("end_of_word_suffix") or "",
            whole=bool(model.get("ignore_merges")),
        )

    def encode(self, word: str) -> list[int]:
        """The ids of a word."""
        if self.whole and word in self.ids:
            return [self.ids[word]]
        return self.merged(word, lambda _: False)

    def merged(self, word: str, drops: Callable[[Pair], bool]) -> list[int]:
        """The ids of a word, where a pair is passed over for one step when `drops` says so."""
        text = self.symbols(word)
        end = len(text)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))  # neighbours of each symbol that is left
        queue: list[tuple[int, int, Pair]] = []

        def offer(at: int) -> None:
            if at >= 0 and after[at] < end and (pair := (text[at], text[after[at]])) in self.merges:
                heapq.heappush(queue, (self.merges[pair][0], at, pair))

        for at in range(end):
            offer(at)
        passed: list[tuple[int, int, Pair]] = []
        while queue:
            _, at, pair = entry = heapq.heappop(queue)
            right = after[at]
            if right == end or (text[at], text[right]) != pair:
                continue  # one of the two has been joined with another since
            if drops(pair):
                passed.append(entry)
                continue
            text[at], text[right] = self.merges[pair][1], GONE
            after[at] = after[right]
            if after[at] < end:
                before[after[at]] = at
            for other in passed:
                heapq.heappush(queue, other)
            passed = []
            offer(before[at])
            offer(at)
        return [symbol for symbol in text if symbol != GONE]

    def symbols(self, word: str) -> list[int]:
        """What a word is before anything is joined."""
        text: list[int] = []
        run: list[int] = []  # unknown characters that wait for the next known one
        for at, character in enumerate(word):
            symbol = (self.prefix if at else "") + character + (self.suffix if at == len(word) - 1 else "")
            if symbol in self.ids:
                text += [*run, self.ids[symbol]]
                run = []
            elif self.bytes and None not in (found := [self.ids.get(f"<0x{b:02X}>") for b in symbol.encode()]):
                text += [number for number in found if number is not None]
            elif self.unknown is not None:
                run = [self.unknown] if self.fuse else [*run, self.unknown]
        return text + run
