"""`openbook data dedupe`: text without what it has twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openbook import log
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.data.dedupe.corpus import Rules
    from openbook.data.documents import Document


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write documents without duplicates: OUT/documents.jsonl, and OUT/report.json with what went and samples of it."""

    text: Positional[tuple[str, ...]]
    """Files or folders of text; of equal documents the first stays."""
    out: Path
    """Folder to write; it appears when everything is there."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    exact: bool = True
    """Documents that are equal but for case, punctuation and white space."""
    near: bool = True
    """Documents that are nearly equal (MinHash)."""
    similarity: float = 0.5
    """From which Jaccard similarity two documents are near."""
    shingle: int = 5
    """Words of a shingle: with 3 documents that were edited more are near too."""
    paragraphs: bool = False
    """Paragraphs that stood before, 12 words or longer."""
    overlap: bool = False
    """Parts that stood in a document before, word for word."""
    overlap_words: int = 50
    """Words of the shortest such part."""
    overwrite: bool = False
    """Replace what an earlier run wrote there."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.dedupe.corpus import Texts, check_out, dedupe

    check_out(config.out, config.overwrite)
    report = dedupe(
        Texts(config.text, config.field),
        config.out,
        _rules(config),
        _tell,
    )
    log.status("")
    shown = {key: value for key, value in report.__dict__.items() if key != "samples"}
    print(json.dumps({"out": str(config.out), **shown}, indent=2) if config.json else report.as_text())
    return 0


def _rules(config: Config) -> Rules:
    from openbook.data.dedupe.corpus import Paragraphs, Rules
    from openbook.data.dedupe.near import Near
    from openbook.data.dedupe.overlap import Overlap

    return Rules(
        exact=config.exact,
        near=Near(threshold=config.similarity, shingle=config.shingle) if config.near else None,
        paragraphs=Paragraphs() if config.paragraphs else None,
        overlap=Overlap(words=config.overlap_words) if config.overlap else None,
    )


def _tell(doing: str, document: Document, number: int) -> None:
    if number % 64 == 0:
        log.status(f"{doing}: {number:,} documents, {document.path.name}")
