"""`openbook data decontaminate`: text without what stands in evaluation sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openbook import log
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.data.documents import Document


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write documents without evaluation items: OUT/documents.jsonl, and what was found in OUT/report.json and .txt."""

    text: Positional[tuple[str, ...]]
    """Files or folders of text."""
    against: tuple[str, ...]
    """Evaluation files or folders: .jsonl, .json, .csv, or a text each."""
    out: Path
    """Folder to write; it appears when everything is there."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    fields: tuple[str, ...] = ()
    """Fields of the evaluation records to look for; all strings if none is named."""
    n: int = 13
    """Words that a document must share with an item, or all words of a shorter text."""
    shortest: int = 8
    """Words of the shortest text that is looked for as a whole."""
    common: int = 10
    """N-grams that more different texts of the sets share than this are the wording of the task: ignored."""
    frequent: int = 50
    """Shared parts of less than 2n words that stand in more documents than this are phrases: ignored."""
    action: Literal["cut", "remove"] = "cut"
    """Cut the shared parts out, or remove the documents that have one."""
    margin: int = 200
    """Characters on both sides that go with a shared part."""
    overwrite: bool = False
    """Replace what an earlier run wrote there."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.dedupe.corpus import Texts, check_out
    from openbook.data.dedupe.decontaminate import Search, decontaminate

    check_out(config.out, config.overwrite)
    search = Search(
        n=config.n, shortest=min(config.shortest, config.n), common=config.common, frequent=config.frequent,
        fields=config.fields, action=config.action, margin=config.margin,
    )  # fmt: skip
    report, text = decontaminate(
        Texts(config.text, config.field),
        config.against,
        config.out,
        search,
        _tell,
    )
    log.status("")
    print(json.dumps({"out": str(config.out), **report}, indent=2, ensure_ascii=False) if config.json else text)
    return 0


def _tell(doing: str, document: Document, number: int) -> None:
    if number % 64 == 0:
        log.status(f"{doing}: {number:,} documents, {document.path.name}")
