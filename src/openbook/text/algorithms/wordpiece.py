"""WordPiece (Schuster & Nakajima 2012; Devlin et al. 2018): a word is cut from the left, the longest token first.

Tokens inside of a word are written `##ing`. How the first vocabularies were trained was never published; what the field
trains with is byte-pair encoding over characters, whose tokens are kept and whose merges are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openbook.text.algorithms import bpe

MARK = "##"
LONGEST = 100  # characters of a word; a longer one is unknown


def train(
    words: Mapping[str, int], vocab: int, specials: Sequence[str], *, characters: int | None = None, least: int = 2
) -> list[str]:
    """The tokens by id: `specials`, the characters alone, the characters inside of a word, then what was joined.

    `characters` are kept at most, the most frequent ones. A character that is not kept is passed over here, and makes a
    word unknown when it is encoded.
    """
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for character in word:
            counts[character] += times
    often = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = sorted(often[:characters])
    known = set(alphabet)

    def spell(word: str) -> list[str]:
        marked = (MARK * (at > 0) + character for at, character in enumerate(word) if character in known)
        return list(marked)

    inside = sorted({symbol for word in words for symbol in spell(word)} - known)
    return bpe.train(words, vocab, [*specials, *alphabet, *inside], spell=spell, prefix=MARK, least=least)[0]


@dataclass(frozen=True)
class WordPiece:
    """A trained vocabulary."""

    ids: Mapping[str, int]
    unknown: int
    mark: str = MARK
    longest: int = LONGEST

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> WordPiece:
        """The model of a tokenizer.json."""
        ids = model["vocab"]
        return cls(ids, ids[model["unk_token"]], model["continuing_subword_prefix"], model["max_input_chars_per_word"])

    def encode(self, word: str) -> list[int]:
        """The ids of a word; one unknown id where any part of it has no token."""
        found, complete = self.matched(word)
        return found if complete else [self.unknown]

    def matched(self, word: str) -> tuple[list[int], bool]:
        """The tokens found from the left, and whether they reach the end."""
        found: list[int] = []
        at = 0
        while at < len(word) <= self.longest:
            mark = self.mark if at else ""
            end = next((end for end in range(len(word), at, -1) if mark + word[at:end] in self.ids), None)
            if end is None:
                return found, False
            found.append(self.ids[mark + word[at:end]])
            at = end
        return found, len(word) <= self.longest
