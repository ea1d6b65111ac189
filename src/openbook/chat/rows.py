"""Texts as what reads them has them: ids with what stands around a text, and a pair as one row with segment types.

A row is made once, so that who counts the tokens and who reads them do the work together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openbook.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """Ids of a text or a pair; `types` are 0 for the first text and 1 for the second."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


Pair = tuple[str, str]
Text = str | Pair | Sequence[int] | Row  # ids are read as they are


def row_of(tokenizer: Tokenizer, text: Text) -> Row:
    """The row of a text, of a pair of texts, or of ids."""
    if isinstance(text, Row):
        return text
    if isinstance(text, str):
        ids = _whole(tokenizer, text)
        return Row(ids, (0,) * len(ids))
    first, second = text if len(text) == 2 else (None, None)
    if isinstance(first, str) and isinstance(second, str):
        ids = _whole(tokenizer, first)
        more = (*tokenizer.encode(second), *tokenizer.suffix)
        return Row(ids + more, (0,) * len(ids) + (1,) * len(more))
    ids = tuple(one for one in text if isinstance(one, int))
    return Row(ids, (0,) * len(ids))


def _whole(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return (*tokenizer.prefix, *tokenizer.encode(text), *tokenizer.suffix)
