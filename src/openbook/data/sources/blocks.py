"""Files → blocks of bytes that can be read side by side, and a block → its documents.

Read one after another, the blocks of a file give exactly the documents of the whole file, in order, whatever their
size. Lines of JSON are parted at line ends, plain text behind separator lines, Parquet between its row groups. What
cannot be parted (packed files, archives, web pages, a text without separators) is one block.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from openbook.data.sources import parquet
from openbook.data.sources.columns import Columns
from openbook.data.sources.document import Bad, Document, Listing, Refused
from openbook.data.sources.kinds import LINES, TEXT, kind, packing, reader
from openbook.data.sources.stream import SEPARATOR, Options, Source
from openbook.data.sources.unpack import PACKED, marked
from openbook.data.sources.window import ENDLESS, STANDARD_INPUT, Block
from openbook.errors import DataError
from openbook.files import explain_os_error

__all__ = ["Bad", "Block", "Columns", "blocks", "read_block"]

NOT_TEXT = {
    **{magic: f"packed (by gzip, Zstandard, bzip2 or xz): name it {suffix}" for magic, suffix in PACKED.items()},
    b"%PDF-": "a PDF document: extract its text first",
    b"PK\x03\x04": "a zip archive (or an Office document): extract its text first",
    b"PAR1": "a Parquet table: name it .parquet",
}
SCAN = 1 << 16  # bytes of a line that are looked at at once


def blocks(
    files: Iterable[Path], size: int = 32 << 20, *, separator: str = SEPARATOR, bad: Listing | None = None
) -> list[Block]:
    """Part `files` (from `find_files`) into blocks of about `size` bytes: half as much more at most, but never within
    a document. A file that cannot be opened is told to `bad`, or is an error."""
    found: list[Block] = []
    for path in files:
        try:
            ends = _cuts(path, size, separator) if path != STANDARD_INPUT else [ENDLESS]
        except OSError as error:
            unreadable(error, path, bad)
            continue
        found += [Block(path, start, end, ends[-1]) for start, end in zip([0, *ends], ends, strict=False)]
    return found


def read_block(
    block: Block,
    columns: Columns | None = None,
    separator: str = SEPARATOR,
    bad: Listing | None = None,
    *,
    encoding: str = "utf-8",
) -> Iterator[Document]:
    """The documents of one block. `bad` is told what cannot be read, and the rest is read; without it, that is an error
    (`DataError`; `OpenbookError` for what the system says). `separator` ends documents of plain text, `encoding` is as
    in `Options`.
    """
    return read(block, Options(columns=columns or Columns(), separator=separator, encoding=encoding, bad=bad))


def read(block: Block, options: Options) -> Iterator[Document]:
    """`read_block`, by options."""
    found = False
    try:
        with _opened(block) as raw:
            source = Source(block, options, raw)
            if _is_text(source):
                for document in reader(source)(source):
                    found = True
                    yield document
                source.settle()
            if block.whole and not found and not source.refused:
                source.refuse(
                    Refused("no text", "it holds no text: only white space or empty records. Remove it or fill it.")
                )
    except OSError as error:
        unreadable(error, block.path, options.bad)


def _opened(block: Block) -> AbstractContextManager[BinaryIO]:
    if block.size == ENDLESS:
        return nullcontext(sys.stdin.buffer)
    return block.path.open("rb", buffering=0)


def _is_text(source: Source) -> bool:
    """Whether a source begins like something that can be read; what it is instead is told."""
    if source.block.end == source.block.start == 0:
        source.refuse(Refused("empty", "it is empty (0 bytes): remove it or fill it."))
        return False
    what = next((what for magic, what in NOT_TEXT.items() if source.begins.startswith(magic)), None)
    if what and not source.block.start and kind(source.path) != ".parquet":
        source.refuse(Refused("not text", f"it is not UTF-8 text but {what}."))
        return False
    return True


def unreadable(error: OSError, path: Path, bad: Listing | None) -> None:
    """Tell what the system says against reading a file."""
    if bad is None:
        raise explain_os_error(error, path, "read") from error
    bad(Bad(path, "unreadable", f"cannot be read: {error.strerror or error}."))


def _cuts(path: Path, size: int, separator: str) -> list[int]:
    """Where the blocks of a file end, in order; the last one is the size of the file."""
    if size < 1:
        raise DataError(f"The size of a block is a number of bytes above 0: got {size}.")
    with path.open("rb") as file:
        total = file.seek(0, 2)
        ends: list[int] = []
        last, what = 0, kind(path)
        file.seek(0)
        if what == ".parquet":
            return [*_after_each(size, parquet.starts(path)), total]
        if packing(path) or what not in (*LINES, *TEXT) or marked(file.read(4)):
            return [total]
        ending = separator.encode() if what in TEXT else b""
        while total - last > size + size // 2 and (ending or what in LINES):
            file.seek(last + size - 1)
            last = _next_end(file, ending)
            if last >= total:
                break
            ends.append(last)
    return [*ends, total]


def _after_each(size: int, places: list[int]) -> list[int]:
    """Those of `places`, but the first, that are `size` or more after one another."""
    found = [0]
    for place in places[1:]:
        if place - found[-1] >= size:
            found.append(place)
    return found[1:]


def _next_end(file: BinaryIO, ending: bytes) -> int:
    """The byte behind the next line end; with an `ending`, behind the next whole line that is just that."""
    at_start = False
    while line := file.readline(SCAN):
        whole = line.endswith(b"\n")
        if whole and (
            not ending or (at_start and ending in line and line.decode("utf-8", "replace").strip() == ending.decode())
        ):
            break
        at_start = whole
    return file.tell()
