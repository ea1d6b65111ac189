"""How well a model foresees a text, per token and per byte, and which of the two may be compared.

    perplexity per token = exp(Σ −ln p / tokens)          per byte = exp(Σ −ln p / bytes)
    bits per byte = Σ −ln p / (bytes · ln 2)

A tokenizer that makes longer tokens makes each of them harder to foresee: per-token numbers of two tokenizers have
different units, and comparing them is refused. A byte is a byte for everybody (Cotterell et al. 2018, Are All Languages
Equally Hard to Language-Model?, §2.2; Gao et al. 2020, The Pile, §3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openbook.errors import InputError

Unit = Literal["token", "byte"]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What a model made of one text, as sums; everything else is a quotient of them.

    nats        Σ −ln p over the tokens that were foreseen
    tokens      how many those are
    bytes       of UTF-8 that they spell; 0: not known
    tokenizer   the fingerprint of the tokenizer that made them; "": not known
    """

    nats: float
    tokens: int
    bytes: int = 0
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.bytes < 0:
            raise InputError(f"A perplexity is of 1 token or more: got tokens={self.tokens}, bytes={self.bytes}.")

    def __add__(self, other: Perplexity) -> Perplexity:
        """Of two parts of a text together."""
        self._same_tokenizer(other, "added")
        return Perplexity(
            nats=self.nats + other.nats,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes if self.bytes and other.bytes else 0,
            tokenizer=self.tokenizer,
        )

    @property
    def per_token(self) -> float:
        """From 1, where every token was certain; infinite where exp has no number for it."""
        return _exp(self.nats / self.tokens)

    @property
    def per_byte(self) -> float:
        """From 1. InputError where the bytes are not known."""
        return _exp(self.nats / self._known_bytes)

    @property
    def bits_per_byte(self) -> float:
        """The logarithm of `per_byte` to the base 2: how small this model could pack the text."""
        return self.nats / self._known_bytes / math.log(2)

    def over(self, other: Perplexity, *, per: Unit = "byte") -> float:
        """This perplexity divided by the `other` one, of the same text: 1.02 is 2% worse.

        InputError where the numbers cannot be compared: per token under two tokenizers, per byte without bytes.
        """
        if per == "token":
            self._same_tokenizer(other, "compared per token")
            return _exp(self.nats / self.tokens - other.nats / other.tokens)
        return _exp(self.nats / self._known_bytes - other.nats / other._known_bytes)

    def plain(self) -> dict[str, float]:
        """Both numbers, for JSON and journals; what depends on bytes is left out where they are not known."""
        found = {"perplexity_per_token": self.per_token}
        if self.bytes:
            found |= {"perplexity_per_byte": self.per_byte, "bits_per_byte": self.bits_per_byte}
        return found

    def __str__(self) -> str:
        byte = f", {self.per_byte:.4g} per byte ({self.bits_per_byte:.3f} bits)" if self.bytes else ""
        return f"perplexity {self.per_token:.4g} per token{byte}"

    @property
    def _known_bytes(self) -> int:
        if not self.bytes:
            raise InputError("How many bytes these tokens spell is not known: there is no perplexity per byte.")
        return self.bytes

    def _same_tokenizer(self, other: Perplexity, what: str) -> None:
        if not self.tokenizer or self.tokenizer != other.tokenizer:
            ours, theirs = (one.tokenizer[:12] or "unknown" for one in (self, other))
            raise InputError(
                f"Perplexities of different tokenizers ({ours}, {theirs}) cannot be {what}: a token is a different "
                "piece of text for each. Compare them per byte, or as bits per byte."
            )


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
