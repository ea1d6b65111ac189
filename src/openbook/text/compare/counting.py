"""Counts of text: documents, bytes, characters, tokens, and what the tokens cost at given prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from openbook.errors import UsageError
from openbook.text.tokenizer import Tokenizer

TOGETHER = 256  # documents encoded at once, at most
CHARACTERS = 1 << 20  # of them together, as far as no single document is longer


@dataclass(frozen=True, kw_only=True)
class Count:
    """How much there is of a text. Counts add up."""

    documents: int = 0
    bytes: int = 0  # as UTF-8
    characters: int = 0  # code points
    tokens: int = 0  # of the text alone: neither bos nor eos

    def __add__(self, other: Count) -> Count:
        return Count(
            documents=self.documents + other.documents,
            bytes=self.bytes + other.bytes,
            characters=self.characters + other.characters,
            tokens=self.tokens + other.tokens,
        )

    @property
    def bytes_per_token(self) -> float:
        """0.0 where there are no tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0

    def cost(self, prices: Mapping[str, float]) -> dict[str, float]:
        """What the tokens cost at each of the `prices`, which are for a million tokens."""
        return {name: self.tokens * price / 1e6 for name, price in prices.items()}

    def plain(self) -> dict[str, float]:
        """For JSON."""
        counts = {name: getattr(self, name) for name in ("documents", "bytes", "characters", "tokens")}
        return {**counts, "bytes_per_token": round(self.bytes_per_token, 4)}


def count(tokenizer: Tokenizer, texts: Iterable[str], tell: Callable[[Count], None] = lambda _: None) -> Count:
    """Count `texts` as they come; a few documents are in memory at a time. `tell` hears what was counted so far.

    The name of a special token in a text is counted as the text that it is.
    """
    found = Count()
    for group in grouped(texts):
        found += Count(
            documents=len(group),
            bytes=sum(len(text.encode("utf-8")) for text in group),
            characters=sum(map(len, group)),
            tokens=sum(map(len, tokenizer.encode_batch(group))),
        )
        tell(found)
    return found


def grouped(texts: Iterable[str], together: int = TOGETHER, characters: int = CHARACTERS) -> Iterator[Sequence[str]]:
    """`texts` in groups, each of at most `together` documents and, unless it is one alone, of `characters`."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and (len(group) == together or size + len(text) > characters):
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def prices(given: Sequence[str]) -> dict[str, float]:
    """Prices of a million tokens as they are typed: `2.5`, or `input=2.5` where there are several."""
    found: dict[str, float] = {}
    for one in given:
        name, _, number = one.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not (0 <= price < math.inf):
            raise UsageError(f"`--price` is the price of a million tokens, as 2.5 or input=2.5: got '{one}'.")
        if name in found:
            what = f"'{name}' is given twice" if name else "several prices need names, as input=2.5"
            raise UsageError(f"`--price`: {what}.")
        found[name] = price
    return found
