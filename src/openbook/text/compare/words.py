"""How a tokenizer cuts words, and what it loses.

    fertility   tokens per word (Rust et al. 2021, How Good is Your Tokenizer?, §3.2); 1 is a vocabulary of whole words
    continued   the part of the words that come apart into two tokens or more (the same section)

A word is a run of letters, marks and digits, with an apostrophe inside: punctuation is not held against anybody. Its
tokens are counted where it mostly stands, after a space: those of `a word` less those of `a`. In scripts that put no
space between words there is no such unit, and both numbers are None.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from openbook.text.tokenizer import Tokenizer

ANCHOR = "a"  # stands before a word
WIDEST = 100  # characters: what is longer is no word but an address or a picture in base64
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of a text, as a tokenizer cuts them."""

    words: int
    tokens: int
    continued: int

    @property
    def fertility(self) -> float | None:
        """Tokens per word; None where there are no words."""
        return self.tokens / self.words if self.words else None

    @property
    def share_continued(self) -> float | None:
        """From 0 to 1; None where there are no words."""
        return self.continued / self.words if self.words else None


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in `texts`; nothing where most of the letters belong to a script without spaces."""
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(text.split())
    if _unspaced(chunks):
        return Counter()
    found: Counter[str] = Counter()
    for chunk, times in chunks.items():
        for word in _words(chunk):
            found[word] += times
    return found


def cut_words(tokenizer: Tokenizer, words: Counter[str]) -> Words:
    """Count the tokens of `words`, each of which is encoded once."""
    alone = len(tokenizer.encode(ANCHOR))
    spelled = list(words)
    sizes = [
        max(1, len(ids) - alone)
        for start in range(0, len(spelled), 4096)
        for ids in tokenizer.encode_batch([f"{ANCHOR} {word}" for word in spelled[start : start + 4096]])
    ]
    counted = [(words[word], size) for word, size in zip(spelled, sizes, strict=True)]
    return Words(
        words=words.total(),
        tokens=sum(times * size for times, size in counted),
        continued=sum(times for times, size in counted if size > 1),
    )


def _words(chunk: str) -> list[str]:
    """The words in a run of characters without white space."""
    if chunk.isascii() and chunk.isalnum():
        return [chunk] if len(chunk) <= WIDEST else []
    # What is no part of a word becomes a space; apostrophes are let go where they stand at an end.
    spaced = "".join(char if _inside(char) else " " for char in chunk)
    return [word for part in spaced.split() if 0 < len(word := part.strip("'’")) <= WIDEST]


@lru_cache(maxsize=1 << 16)
def _inside(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN" or char in "'’\u200c\u200d"  # the joiners of Persian and Hindi


@lru_cache(maxsize=1 << 16)
def _without_spaces(char: str) -> bool:
    return unicodedata.name(char, "").startswith(UNSPACED)


def _unspaced(chunks: Counter[str]) -> bool:
    letters = Counter(char for chunk in list(chunks)[:5000] for char in chunk if char.isalpha())
    return 2 * sum(times for char, times in letters.items() if _without_spaces(char)) > letters.total()
