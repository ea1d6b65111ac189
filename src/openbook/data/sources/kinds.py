"""Which kind a file is, by its name, and the reader of each kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import PurePath

from openbook.data.sources import html, jsonl, markdown, objects, parquet, table, text, warc
from openbook.data.sources.document import Document
from openbook.data.sources.stream import Source
from openbook.data.sources.unpack import UNPACK
from openbook.data.sources.window import ENDLESS

Reader = Callable[[Source], Iterator[Document]]

READERS: dict[str, Reader] = {
    ".txt": text.read,
    ".md": markdown.read,
    ".html": html.read,
    ".htm": html.read,
    ".jsonl": jsonl.read,
    ".ndjson": jsonl.read,
    ".json": objects.read,
    ".csv": table.read_csv,
    ".tsv": table.read_tsv,
    ".parquet": parquet.read,
    ".warc": warc.read,
    ".wet": warc.read,
}
TEXT = (".txt", ".md")
LINES = (".jsonl", ".ndjson")  # a record a line
NAMED = (".json", ".csv", ".tsv")  # as often settings or results as text: read when named or matched, not from a folder
FOLDER = tuple(suffix for suffix in READERS if suffix not in NAMED)  # what is read from a folder
AN_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*[\"}]")  # how a line of JSON begins
ABOUT = ("readme", "license", "licence", "copying", "notice", "changelog", "provenance", "citation")  # not the data


def packing(path: PurePath) -> str:
    """`.gz` and the like, empty for a file that is not packed."""
    suffix = path.suffix.lower()
    return suffix if suffix in UNPACK else ""


def kind(path: PurePath) -> str:
    """The suffix of a file that says what it holds: of `a.JSONL.gz`, `.jsonl`; `.txt` for names that say nothing."""
    name = path.name.lower().removesuffix(packing(path))
    suffix = PurePath(name).suffix
    return suffix if suffix in READERS else ".txt"


def in_folder(name: str) -> bool:
    """Whether a file is read when its folder is named: of a kind that holds text, and no page about the data."""
    path = PurePath(name)
    bare = name.lower().removesuffix(packing(path))
    return bare.endswith(FOLDER) and PurePath(bare).stem not in ABOUT


def reader(source: Source) -> Reader:
    """The reader of a file by its name, of standard input by how it begins."""
    if source.block.size == ENDLESS:
        return jsonl.read if AN_OBJECT.match(source.begins) else text.read
    return READERS[kind(source.path)]
