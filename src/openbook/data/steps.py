"""What is done to one document on its way into a corpus: a step gives it back, changed or not, or says why it goes.

Steps know one document each, so that any number of processes and machines may work side by side; what compares
documents with each other (duplicates) is in `dedupe/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from openbook.data.documents import Document


@dataclass(frozen=True, slots=True)
class Removed:
    """Why a document goes."""

    reason: str  # the rule, in the same words each time: reports count by it
    detail: str = ""  # what broke it: "12 words, 50 at least"


class Step(Protocol):
    """A pure function of one document: the same document gives the same result, in any process and in any order.

    It can be pickled. A document that comes back with another text was repaired; one with more in `meta` was described.
    """

    @property
    def name(self) -> str: ...
    def __call__(self, document: Document, /) -> Document | Removed: ...
