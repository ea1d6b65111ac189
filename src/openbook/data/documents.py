"""Files of many kinds → documents, one string each, with an error that names the place when something is not text.

What is a document:

- `.jsonl`, `.ndjson`: every line is a JSON object; its `text` field (another with `field=`, any part of the record
  with `columns=`) is one document. `.json`: a list of such objects, one, or several one after another.
- `.parquet`, `.csv`, `.tsv`: a document a row, by the same columns.
- `.html`, `.htm`: the main text of the page. `.warc`, `.wet`: the pages of a web archive.
- `.md` and any other file: the whole file is one document, unless it has lines that hold nothing but the separator
  (`<|endoftext|>` unless told otherwise): each of those ends a document. Line ends become a plain newline, and a
  byte-order mark goes. The front matter of Markdown is no text: it goes into `meta`.
- `.gz`, `.zst`, `.bz2` or `.xz` after any of these is unpacked (not Parquet, which packs itself).
- a folder: all its files of these kinds, at every depth and through links, in the order of their paths. Passed over are
  hidden files and folders (`.name`); README, LICENSE and other pages about the data; and `.json`, `.csv` and `.tsv`,
  which are settings or results as often as text: name them, or a pattern. A path with `*`, `?` or `[` that does not
  exist is a pattern, in which `**` is any depth.
- `-`: standard input, where it is read once: JSON objects by lines or plain text, packed or not.

Text is UTF-8, or what a byte-order mark says (UTF-16, UTF-32), or `encoding=`. A text that is empty or all white space
is no document, and a file without any document is an error. Memory is bounded by one document: plain text beyond
64 MiB is cut at a line end, a record beyond that is refused. `.parquet`, `.html`, `.warc` and `.zst` need the extra
`data`.

What cannot be read is an error; with `bad=`, a function, it is told to that, and all the rest is read. To read the
parts of a large file side by side, see `sources/blocks.py`.
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
    longest_line: int | None = None,
) -> Iterator[Document]:
    """The documents of one file. Raises `DataError` with the line or byte of what cannot be read.

    `columns` says more than `field` can, and takes its place. With `bad`, what cannot be read is told to it, and all
    the rest is read. `longest_line`: bytes of a record, beyond which it is refused; None: 64 MiB.
    """
    options = Options(
        columns=columns or Columns(text=field),
        separator=separator,
        encoding=encoding,
        bad=bad,
        longest_line=longest_line or LONGEST_LINE,
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
