"""Personal and secret things are taken out of a document, and what stood there is said: `<EMAIL>`.

Patterns and check digits find them (personal.py). What has none, above all names and addresses, stays in the text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

from openbook.data.clean.personal import KINDS, Found, find
from openbook.data.documents import Document
from openbook.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Replace e-mail addresses, phone and account numbers, keys …; `meta["scrubbed"]` counts them by kind."""

    name: ClassVar[str] = "scrub"

    kinds: tuple[str, ...] = tuple(KINDS)
    """What is looked for."""
    numbered: bool = False
    """`<EMAIL_1>`, `<EMAIL_2>`: the same thing has the same number throughout a document."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"No kind of personal data is called {kind!r} (step 'scrub').{nearest(kind, KINDS)}")

    def __call__(self, document: Document, /) -> Document:
        found = find(document.text, self.kinds)
        if not found:
            return document
        counts = dict(sorted(Counter(item.kind for item in found).items()))
        meta = {**document.meta, "scrubbed": counts}
        return replace(document, text=self._replaced(document.text, found), meta=meta)

    def _replaced(self, text: str, found: list[Found]) -> str:
        parts: list[str] = []
        numbers: dict[str, dict[str, int]] = {}
        done = 0
        for item in found:
            of_kind = numbers.setdefault(item.kind, {})
            number = of_kind.setdefault(text[item.start : item.end], len(of_kind) + 1)
            parts += text[done : item.start], f"<{item.kind.upper()}{f'_{number}' if self.numbered else ''}>"
            done = item.end
        return "".join((*parts, text[done:]))
