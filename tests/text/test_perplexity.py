"""Perplexity per token and per byte: the arithmetic, and the comparisons that are refused."""

from __future__ import annotations

import math

import pytest

from openbook.errors import InputError
from openbook.text.perplexity import Perplexity

# A model that gives every byte the chance 1/4: of 12 bytes it makes 4 tokens with one tokenizer, 6 with the other.
NATS = 12 * math.log(4)
LONG = Perplexity(nats=NATS, tokens=4, bytes=12, tokenizer="a" * 32)
SHORT = Perplexity(nats=NATS, tokens=6, bytes=12, tokenizer="b" * 32)


def test_both_numbers() -> None:
    assert LONG.per_token == pytest.approx(64)
    assert SHORT.per_token == pytest.approx(16)
    assert LONG.per_byte == SHORT.per_byte == pytest.approx(4)
    assert LONG.bits_per_byte == pytest.approx(2)
    assert LONG.plain() == {"perplexity_per_token": LONG.per_token, "perplexity_per_byte": LONG.per_byte,
                            "bits_per_byte": LONG.bits_per_byte}  # fmt: skip
    assert str(LONG) == "perplexity 64 per token, 4 per byte (2.000 bits)"


def test_across_tokenizers_bytes_alone_are_compared() -> None:
    assert LONG.over(SHORT) == 1.0  # the same model of the same text: neither is better
    with pytest.raises(InputError, match=r"different tokenizers \(aaaaaaaaaaaa, bbbbbbbbbbbb\).*Compare them per byte"):
        LONG.over(SHORT, per="token")
    with pytest.raises(InputError, match="cannot be added"):
        LONG + SHORT


def test_with_one_tokenizer_both_are() -> None:
    worse = Perplexity(nats=NATS * 1.1, tokens=4, bytes=12, tokenizer=LONG.tokenizer)
    assert worse.over(LONG, per="token") == pytest.approx(worse.per_token / LONG.per_token)
    assert worse.over(LONG) == pytest.approx(worse.per_byte / LONG.per_byte)
    assert (LONG + worse).per_token == pytest.approx(math.exp(2.1 * NATS / 8))


def test_what_is_not_known_is_not_said() -> None:
    unknown = Perplexity(nats=3.0, tokens=2)
    assert unknown.plain() == {"perplexity_per_token": math.exp(1.5)}
    assert "byte" not in str(unknown)
    for asked in (lambda: unknown.per_byte, lambda: unknown.bits_per_byte, lambda: LONG.over(unknown)):
        with pytest.raises(InputError, match="bytes"):
            asked()
    with pytest.raises(InputError, match="unknown"):  # two unknown tokenizers need not be the same
        unknown.over(unknown, per="token")
    with pytest.raises(InputError, match="1 token or more"):
        Perplexity(nats=0.0, tokens=0)


def test_a_hopeless_model() -> None:
    assert Perplexity(nats=1e6, tokens=1, bytes=1, tokenizer="a").per_token == math.inf
