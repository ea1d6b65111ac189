"""Law: what is sampled is distributed as it says, decodes to the same text, and is a function of the seed.

The distribution is compared, by chi-square, with all ways to cut a small word, each with its exact probability. Seeded
faults: a dropout that is drawn once for a whole word, an alpha that is ignored.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from openbook.errors import InputError, TokenizerError
from openbook.text import Tokenizer
from openbook.text.algorithms.bpe import Bpe
from openbook.text.algorithms.unigram import Unigram
from tests.text.kinds import ODD, SENTENCES

Chances = dict[tuple[int, ...], float]
DRAWS = 4000


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 3, 500)


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 3, 500, kind="unigram")


def after_dropout(model: Bpe, word: str, rate: float) -> Chances:
    """All that can become of a word, by following every step."""
    chances: Chances = defaultdict(float)

    def follow(text: tuple[int, ...], chance: float) -> None:
        found = [(*model.merges[pair], at) for at, pair in enumerate(pairwise(text)) if pair in model.merges]
        for _, token, at in sorted(found, key=lambda one: (one[0], one[2])):
            follow((*text[:at], token, *text[at + 2 :]), chance * (1 - rate))
            chance *= rate
        chances[text] += chance

    follow(tuple(model.symbols(word)), 1.0)
    return dict(chances)


def by_probability(model: Unigram, word: str, alpha: float) -> Chances:
    """All ways to cut a word, weighted by the power of their probability."""
    ways: Chances = {}

    def follow(at: int, ids: tuple[int, ...], score: float) -> None:
        if at == len(word):
            ways[ids] = math.exp(alpha * score)
        for end in range(at + 1, len(word) + 1):
            if (number := model.ids.get(word[at:end])) is not None:
                follow(end, (*ids, number), score + model.tokens[number][1])

    follow(0, (), 0.0)
    total = sum(ways.values())
    return {ids: weight / total for ids, weight in ways.items()}


def assert_distributed(draw: Callable[[int], list[int]], chances: Chances) -> None:
    """Chi-square against the exact chances; ways too rare for it are one. Fails by chance once in 10,000 seeds."""
    seen = Counter(tuple(draw(seed)) for seed in range(DRAWS))
    assert seen.keys() <= chances.keys()
    often = {ids for ids, chance in chances.items() if chance * DRAWS >= 5}
    pairs = [(seen[ids], chances[ids] * DRAWS) for ids in often]
    rest = (sum(n for ids, n in seen.items() if ids not in often), sum(c for i, c in chances.items() if i not in often))
    if rest[1] * DRAWS >= 5:
        pairs.append((rest[0], rest[1] * DRAWS))
    assert len(pairs) > 1, "nothing to tell apart"
    chi = sum((got - expected) ** 2 / expected for got, expected in pairs)
    free = len(pairs) - 1  # Wilson and Hilferty's approximation of the 0.9999 quantile
    assert chi < free * (1 - 2 / (9 * free) + 3.72 * math.sqrt(2 / (9 * free))) ** 3


class TestDropout:
    @pytest.mark.parametrize("rate", [0.1, 0.5])
    def test_distribution(self, bpe: Tokenizer, rate: float) -> None:
        model = bpe.whole.algorithm
        assert isinstance(model, Bpe)
        assert_distributed(
            lambda seed: bpe.sample(" river", dropout=rate, seed=seed), after_dropout(model, "Ġriver", rate)
        )

    def test_the_ends(self, bpe: Tokenizer) -> None:
        for text in [*SENTENCES, *ODD]:
            assert bpe.sample(text, dropout=0.0) == bpe.encode(text)
            assert [bpe.token_bytes(number) for number in bpe.sample(text, dropout=1.0)] == [
                bytes([byte]) for byte in text.encode()
            ]

    def test_a_rate_drawn_once_is_found(self, bpe: Tokenizer) -> None:
        model = bpe.whole.algorithm
        assert isinstance(model, Bpe)

        def once(seed: int) -> list[int]:
            drop = random.Random(seed).random() < 0.5
            return model.merged("Ġriver", lambda _: drop)

        with pytest.raises(AssertionError):
            assert_distributed(once, after_dropout(model, "Ġriver", 0.5))


class TestAlpha:
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_distribution(self, unigram: Tokenizer, alpha: float) -> None:
        model = unigram.whole.algorithm
        assert isinstance(model, Unigram)
        chances = by_probability(model, "▁nightest", alpha)
        assert_distributed(lambda seed: unigram.sample(" nightest", alpha=alpha, seed=seed), chances)

    def test_a_large_one_gives_the_best(self, unigram: Tokenizer) -> None:
        model = unigram.whole.algorithm
        assert isinstance(model, Unigram)
        for text in SENTENCES:  # of equally good ways any
            found, best = unigram.sample(text, alpha=1e7), unigram.encode(text)
            assert unigram.sample(text, alpha=1e308) == unigram.sample(text, alpha=1e9)
            scores = [sum(model.tokens[number][1] for number in ids) for ids in (found, best)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-6)

    def test_the_best_are_in_order(self, unigram: Tokenizer) -> None:
        model = unigram.whole.algorithm
        assert isinstance(model, Unigram)
        chances = by_probability(model, "▁nightest", 1.0)
        ways = [tuple(number for _, _, number in cut) for cut in model.best("▁nightest", len(chances) + 5)]
        assert set(ways) == chances.keys()
        assert all(chances[one] >= chances[other] * (1 - 1e-9) for one, other in pairwise(ways))
        assert list(ways[0]) == unigram.encode(" nightest")

    def test_an_alpha_that_is_ignored_is_found(self, unigram: Tokenizer) -> None:
        model = unigram.whole.algorithm
        assert isinstance(model, Unigram)
        with pytest.raises(AssertionError):
            assert_distributed(
                lambda seed: unigram.sample(" nightest", alpha=1.0, seed=seed), by_probability(model, "▁nightest", 0.3)
            )


@given(text=st.text(max_size=30), seed=st.integers(0, 99))
def test_the_text_and_the_seed(bpe: Tokenizer, unigram: Tokenizer, text: str, seed: int) -> None:
    for tokenizer, rate in ((bpe, {"dropout": 0.3}), (unigram, {"alpha": 0.2})):
        ids = tokenizer.sample(text, seed=seed, **rate)
        assert ids == tokenizer.sample(text, seed=seed, **rate)
        assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(text))


def test_specials_stay_text(bpe: Tokenizer, unigram: Tokenizer) -> None:
    for tokenizer, rate in ((bpe, {"dropout": 0.1}), (unigram, {"alpha": 0.2})):
        text = "".join(tokenizer.specials)
        for seed in range(20):
            ids = tokenizer.sample(text, seed=seed, **rate)
            assert set(tokenizer.specials.values()).isdisjoint(ids)
            assert tokenizer.decode(ids) == text


def test_refusals(bpe: Tokenizer, unigram: Tokenizer) -> None:
    for wrong in ({}, {"dropout": 0.1, "alpha": 0.1}, {"dropout": 1.5}, {"dropout": -0.1}):
        with pytest.raises(InputError):
            bpe.sample("a", **wrong)
    for wrong in ({"alpha": -1.0}, {"alpha": math.inf}, {"alpha": math.nan}):
        with pytest.raises(InputError):
            unigram.sample("a", **wrong)
    with pytest.raises(TokenizerError, match="`alpha` is for Unigram"):
        bpe.sample("a", alpha=0.1)
    with pytest.raises(TokenizerError, match="`dropout` is for BPE"):
        unigram.sample("a", dropout=0.1)
    pieces = Tokenizer.train(SENTENCES, 300, kind="wordpiece")
    with pytest.raises(TokenizerError, match="WordPiece"):
        pieces.sample("a", dropout=0.1)
    mute = Tokenizer(tokenizers.Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=None)))
    assert len(mute.sample("ab", alpha=0.5)) == 2
    with pytest.raises(TokenizerError, match="no tokens that make up 'abz'"):
        mute.sample("abz", alpha=0.5)
