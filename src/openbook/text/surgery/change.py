"""What a change of vocabulary is, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from openbook.text.tokenizer import Tokenizer

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Change:
    """A new tokenizer, and where the rows of its ids come from.

    rows    for each new id the old ids whose mean is its row; none: the mean of all
    known   how many ids the old tokenizer has; rows of a model beyond them are padding
    """

    tokenizer: Tokenizer
    rows: Rows
    known: int

    @cached_property
    def ids(self) -> Mapping[int, int]:
        """Old id → new id, of those that have a row of their own."""
        found: dict[int, int] = {}
        for number, sources in enumerate(self.rows):
            if len(sources) == 1:
                found.setdefault(sources[0], number)
        return found
