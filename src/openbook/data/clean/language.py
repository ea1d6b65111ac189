"""Which language a document is in: py3langid (a naive Bayes classifier over byte n-grams; Lui and Baldwin 2012).

It knows some hundred languages, and gives what it does not know to a neighbour. Read is a sample from the beginning
and one from the middle: titles and menus stand at the beginning.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from openbook.data.clean.excerpt import excerpt
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import ConfigError, MissingExtra, nearest


@dataclass(frozen=True, kw_only=True)
class Language:
    """Write `language` (ISO 639-1 where there is one) and `language_score` into `meta`; keep some languages only."""

    name: ClassVar[str] = "language"

    keep: tuple[str, ...] = ()
    """Languages whose documents stay: `en`, `de`. None given: all stay, and are only described."""
    threshold: float = 0.5
    """The least score, from 0 to 1, at which a document counts as being in a language of `keep`."""
    sample: int = 1024
    """Characters that are read of a long document: half from its beginning, half from its middle."""

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ConfigError(f"`sample` is at least 1 character: got {self.sample} (step 'language').")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"`threshold` is from 0 to 1: got {self.threshold} (step 'language').")

    def __call__(self, document: Document, /) -> Document | Removed:
        language, score = self.identify(document.text)
        if self.keep and language not in self.keep:
            return Removed("another language", f"{language}, score {score:.2f}")
        if self.keep and score < self.threshold:
            return Removed("language unclear", f"{language}, score {score:.2f}, {self.threshold} at least")
        return replace(document, meta={**document.meta, "language": language, "language_score": round(score, 4)})

    def identify(self, text: str) -> tuple[str, float]:
        """The language and its score. Raises MissingExtra, and ConfigError for a language in `keep` that is unknown."""
        identifier = _identifier()
        if unknown := set(self.keep).difference(identifier.labels):
            name = min(unknown)
            raise ConfigError(f"No language {name!r} can be identified.{nearest(name, identifier.labels)}")
        language, score = identifier.classify(excerpt(text, self.sample))
        return str(language), float(score)


@functools.cache
def _identifier() -> Any:
    """Read once per process; its scores are made probabilities, whatever the length of the text."""
    try:
        from py3langid import langid
    except ImportError as error:
        raise MissingExtra("py3langid", "data", "Identifying languages") from error
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
