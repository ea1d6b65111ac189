"""Text on disk → documents, one string each, with an error that names the place when something is not text.

What is a document:

- `.jsonl` (also `.ndjson`): every line is a JSON object; its `text` field (another with `field=` or `columns=`) is one
  document.
- any other file: the whole file is one document, unless it has lines that hold nothing but the separator
  (`<|endoftext|>` unless told otherwise): each of those ends a document. Line ends become a plain newline, and a
  byte-order mark goes.
- `.gz` after either name is read through gzip.
- a folder: all its files of these kinds, at every depth, in the order of their paths; hidden files and folders
  (`.name`) are passed over. A path with `*`, `?` or `[` that does not exist is a pattern, in which `**` is any depth.

A text that is empty or all white space is no document, and a file without any document is an error. A plain-text
document beyond 64 Mi characters is cut at a line end, so that memory stays bounded; files are read line by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbook.data.sources.blocks import read, unreadable
from openbook.data.sources.columns import Columns
from openbook.data.sources.document import Bad, Document, Listing
from openbook.data.sources.paths import Paths, find_files
from openbook.data.sources.stream import LONGEST_DOCUMENT, LONGEST_LINE, SEPARATOR, Options
from openbook.data.sources.window import ENDLESS, STANDARD_INPUT, Block

__all__ = ["SEPARATOR", "Bad", "Columns", "Document", "Paths", "documents", "find_files", "read_documents"]


def documents(
    paths: Paths,
    *,
    field: str = "text",
    separator: str = SEPARATOR,
    columns: Columns | None = None,
    bad: Listing | None = None,
    encoding: str = "utf-8",
) -> Iterator[str]:
    """The texts of all documents under `paths`, in a fixed order. Raises `DataError` for what is not text."""
    for path in find_files(paths, bad=bad, standard_input=True):
        for document in read_documents(
            path, field=field, separator=separator, columns=columns, bad=bad, encoding=encoding
        ):
            yield document.text


def read_documents(
    path: Path,
    *,
    field: str = "text",
    separator: str = SEPARATOR,
    columns: Columns | None = None,
    bad: Listing | None = None,
    encoding: str = "utf-8",
) -> Iterator[Document]:
    """The documents of one file. Raises `DataError` with the line or byte of what cannot be read.

    `columns` says more than `field` can, and takes its place. With `bad`, what cannot be read is told to it, and all
    the rest is read.
    """
    options = Options(
        columns=columns or Columns(text=field),
        separator=separator,
        encoding=encoding,
        bad=bad,
        longest_line=LONGEST_LINE,
        longest_document=LONGEST_DOCUMENT,
    )
    if path == STANDARD_INPUT:
        yield from read(Block(path, 0, ENDLESS, ENDLESS), options)
        return
    try:
        size = path.stat().st_size
    except OSError as error:
        unreadable(error, path, bad)
        return
    yield from read(Block(path, 0, size, size), options)
