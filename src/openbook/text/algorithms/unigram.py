"""Unigram (Kudo 2018): each token has a probability, and a word is cut in the way that makes it most probable.

    encode   the best way, by dynamic programming                           §3.2, Viterbi
    sample   any way, with its probability to the power alpha, normalised   §3.3
    best     the n best ways                                                §3.3

Training begins with all frequent substrings as tokens. In turns, how often each occurs is estimated over all ways to
cut the words (expectation) and becomes its probability (maximisation), and the tokens whose loss would cost the least
likelihood are dropped, until so many are left as are wanted. Single characters stay.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openbook.errors import TokenizerError

PENALTY = 10.0  # nats by which an unknown character is worse than the worst token
SHRINK = 0.75  # of the tokens stay in one round
ROUNDS = 2  # of estimation between two prunings
LEAST = 0.5  # times that a token must be expected to occur
SHARPEST = 1e9  # alpha at most: the best way is long certain, and numbers stay finite
STEP = 1e-4  # between the scores of characters that are put back at the end

Cut = list[tuple[int, int, int]]  # start, end and id of each token


@dataclass(frozen=True)
class Unigram:
    """Tokens with their log-probabilities, by id."""

    tokens: list[tuple[str, float]]
    unknown: int | None = None  # stands for characters that are not in the vocabulary
    bytes: bool = False  # rather, their UTF-8 bytes stand for them, <0xE2>

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Unigram:
        """The model of a tokenizer.json."""
        tokens = [(token, score) for token, score in model["vocab"]]
        return cls(tokens, model.get("unk_id"), bool(model.get("byte_fallback")))

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: number for number, (token, _) in enumerate(self.tokens)}

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.ids), default=0)

    @cached_property
    def worst(self) -> float:
        """The score of an unknown character."""
        return min((score for _, score in self.tokens if not math.isnan(score)), default=0.0) - PENALTY

    def arriving(self, word: str) -> list[list[tuple[int, float, int]]]:
        """For each place in the word the tokens that end there, the longest first: (start, score, id)."""
        ends: list[list[tuple[int, float, int]]] = [[] for _ in range(len(word) + 1)]
        for start in range(len(word)):
            for end in range(start + 1, min(start + self.longest, len(word)) + 1):
                if (number := self.ids.get(word[start:end])) is not None:
                    ends[end].append((start, self.tokens[number][1], number))
            if word[start] not in self.ids and self.unknown is not None:
                ends[start + 1].append((start, self.worst, self.unknown))
        return ends

    def cut(self, word: str) -> Cut:
        """The most probable way to cut a word."""
        ends = self.arriving(word)
        _, back = _forward(ends)
        cut: Cut = []
        at = len(word)
        while at > 0:
            start, number = back[at]
            if number < 0:
                raise _speechless(word)
            cut.append((start, at, number))
            at = start
        return cut[::-1]

    def best(self, word: str, count: int) -> list[Cut]:
        """The `count` most probable ways, the best first: A* from the end, with the forward scores as what is left."""
        ends = self.arriving(word)
        score, _ = _forward(ends)
        queue: list[tuple[float, int, int, float, Cut]] = [(-score[-1], 0, len(word), 0.0, [])]
        found: list[Cut] = []
        serial = 0
        while queue and len(found) < count:
            _, _, at, behind, cut = heapq.heappop(queue)
            if at == 0:
                found.append(cut)
            for start, gain, number in ends[at]:
                serial += 1
                whole = behind + gain + score[start]
                heapq.heappush(queue, (-whole, serial, start, behind + gain, [(start, at, number), *cut]))
        return found

    def sampled(self, word: str, alpha: float, draw: Callable[[], float]) -> Cut:
        """A way to cut a word, drawn: forward sums, then backward from the end. `draw` gives numbers from 0 to 1."""
        alpha = min(alpha, SHARPEST)
        ends = self.arriving(word)
        total = [0.0]
        for tokens in ends[1:]:
            total.append(_log_sum(total[start] + alpha * score for start, score, _ in tokens))
        if total[-1] == -math.inf:
            raise _speechless(word)
        cut: Cut = []
        at = len(word)
        while at > 0:
            left = draw()
            chosen = ends[at][-1]
            for token in ends[at]:
                left -= math.exp(total[token[0]] + alpha * token[1] - total[at])
                if left < 0:
                    chosen = token
                    break
            start, _, number = chosen
            cut.append((start, at, number))
            at = start
        return cut[::-1]

    def encode(self, word: str) -> list[int]:
        """The ids of a word."""
        return self.numbers(word, self.cut(word))

    def numbers(self, word: str, cut: Cut) -> list[int]:
        """The ids of a cut: a run of unknown characters is its bytes, or one unknown token."""
        found: list[int] = []
        run = ""
        for start, end, number in [*cut, (len(word), len(word), -1)]:
            if number == self.unknown:
                run += word[start:end]
                continue
            if run:
                found += self._unknown(run)
                run = ""
            found.append(number)
        return found[:-1]

    def _unknown(self, run: str) -> list[int]:
        if run in self.ids:  # a token whose characters are none
            return [self.ids[run]]
        known = [self.ids[name] for byte in run.encode() if (name := f"<0x{byte:02X}>") in self.ids]
        if self.bytes and len(known) == len(run.encode()):
            return known
        return [] if self.unknown is None else [self.unknown]


def _speechless(word: str) -> TokenizerError:
    return TokenizerError(
        f"The vocabulary has no tokens that make up {word[:40]!r}, and none for what it lacks. "
        "Give it an unknown token (`unk_id`), or leave that text out."
    )


def _forward(ends: list[list[tuple[int, float, int]]]) -> tuple[list[float], list[tuple[int, int]]]:
    """The best score of the text up to each place, and the last token there: its start, its id."""
    score, back = [0.0], [(0, -1)]
    for tokens in ends[1:]:
        top, kept = -math.inf, (0, -1)
        for start, gain, number in tokens:
            if score[start] + gain > top:
                top, kept = score[start] + gain, (start, number)
        score.append(top)
        back.append(kept)
    return score, back


# ------------------------------------------------------------------------------------------------ training


def train(
    words: Mapping[str, int], vocab: int, alphabet: Iterable[str] = (), *, longest: int = 16, seeds: int = 1_000_000
) -> list[tuple[str, float]]:
    """Learn from `words` and how often each occurs: at most `vocab` tokens with their scores, the best first.

    alphabet   characters that get a token whether they occur or not, as those of the words do
    longest    characters of a token
    seeds      tokens to begin with, at most

    There are more than `vocab` only where there are more characters than that.
    """
    most = vocab * 11 // 10
    model = _model(seed(words, longest, seeds))
    while True:
        for _ in range(ROUNDS):
            model = _model(maximise(model, expect(model, words)))
        if len(model.tokens) <= most:
            break
        model = _model(prune(model, words, most))
    known = dict(model.tokens[1:])
    lowest = min(known.values())
    kept: dict[str, float] = {}
    absent = 0
    for character in sorted({*alphabet, *(character for word in words for character in word)}):
        kept[character] = known.get(character, lowest + absent * STEP)
        absent += character not in known
    for token, score in known.items():
        if len(kept) >= vocab:
            break
        kept.setdefault(token, score)
    return sorted(kept.items(), key=lambda entry: (-entry[1], entry[0]))


def _model(tokens: list[tuple[str, float]]) -> Unigram:
    """A model while it is trained: its unknown token, whose name no text holds, comes first."""
    return Unigram([("", math.nan), *tokens], unknown=0)


def seed(words: Mapping[str, int], longest: int, most: int) -> list[tuple[str, float]]:
    """The tokens to begin with: all characters, then substrings, by how much text of the word list they cover.

    Of substrings that always go on in the same way only the longest is taken (the inner nodes of a suffix tree).
    """
    characters: Counter[str] = Counter()
    substrings: Counter[str] = Counter()
    follower: dict[str, str | None] = {}  # the one character that comes after it, empty at the end; None: several do
    for word, times in words.items():
        for start in range(len(word)):
            characters[word[start]] += times
            for end in range(start + 2, min(start + longest, len(word)) + 1):
                part, after = word[start:end], word[end : end + 1]
                substrings[part] += 1
                if follower.setdefault(part, after) != after:
                    follower[part] = None
    found = [(times, character) for character, times in characters.items()]
    found.sort(reverse=True)
    covered = [(times * len(part), part) for part, times in substrings.items() if follower[part] is None]
    covered.sort(reverse=True)
    found += covered[: max(most - len(found), 1)]
    total = math.log(sum(weight for weight, _ in found))
    return [(token, math.log(weight) - total) for weight, token in found]


def expect(model: Unigram, words: Mapping[str, int]) -> list[float]:
    """How often each token occurs, over all ways to cut the words, each with its probability."""
    expected = [0.0] * len(model.tokens)
    for word, times in words.items():
        ends = model.arriving(word)
        total = [0.0]  # of the text up to a place: the log of the sum over all ways
        for tokens in ends[1:]:
            total.append(_log_sum(total[start] + score for start, score, _ in tokens))
        rest = [-math.inf] * len(ends)  # the same of the text from a place on
        rest[-1] = 0.0
        for end in range(len(word), 0, -1):
            for start, score, _ in ends[end]:
                rest[start] = _log_sum((rest[start], score + rest[end]))
        for end, tokens in enumerate(ends):
            for start, score, number in tokens:
                expected[number] += times * math.exp(total[start] + score + rest[end] - total[-1])
    return expected


def maximise(model: Unigram, expected: list[float]) -> list[tuple[str, float]]:
    """New scores. The digamma function in the place of the logarithm makes rare tokens rarer (a sparse prior)."""
    kept = [(token, times) for (token, _), times in zip(model.tokens[1:], expected[1:], strict=True) if times >= LEAST]
    total = digamma(sum(times for _, times in kept))
    return [(token, digamma(times) - total) for token, times in kept]


def prune(model: Unigram, words: Mapping[str, int], least: int) -> list[tuple[str, float]]:
    """Keep three quarters of the tokens (`least` at least): those without which the words would be least probable.

    What is lost with a token is estimated as if all its occurrences were cut in the second best way.
    """
    others = [_otherwise(model, token) for token, _ in model.tokens]
    used = [0] * len(model.tokens)
    for word, times in words.items():
        for _, _, number in model.cut(word):
            used[number] += times
    total, texts = sum(used), sum(words.values())
    kept: list[tuple[str, float]] = []
    losses: list[tuple[float, int]] = []
    for number, entry in enumerate(model.tokens):
        other = others[number]
        if number == 0 or (used[number] == 0 and other != []):
            continue
        if not other:
            kept.append(entry)
            continue
        before = math.log(used[number]) - math.log(total)
        # The fast path counts all tokens here, where sentencepiece counts len(other): frequent tokens stay more often.
        grown = math.log(total + used[number] * (len(model.tokens) - 1))
        after = 0.0
        for one in other:
            after += math.log(used[one] + used[number]) - grown
        losses.append((-(used[number] / texts) * (before - after), number))
    room = max(least, int(len(model.tokens) * SHRINK)) - 1 - len(kept)
    return kept + [model.tokens[number] for _, number in sorted(losses)[: max(room, 0)]]


def _otherwise(model: Unigram, token: str) -> list[int] | None:
    """The ids of the second best way to cut a token; none where there is no other; None: it is not the best itself."""
    ways = model.best(token, 2)
    if len(ways) < 2:
        return []
    return [number for _, _, number in ways[1]] if len(ways[0]) == 1 else None


def _log_sum(values: Iterable[float]) -> float:
    """log Σ exp"""
    terms = list(values)
    top = max(terms, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(term - top) for term in terms))


def digamma(x: float) -> float:
    """The derivative of log Γ: recurrence up to 7, then the asymptotic series around x - 1/2."""
    below = 0.0
    while x < 7:
        below -= 1 / x
        x += 1
    x -= 0.5
    square = x**-2
    return below + math.log(x) + square / 24 - 7 / 960 * square**2 + 31 / 8064 * square**3 - 127 / 30720 * square**4
