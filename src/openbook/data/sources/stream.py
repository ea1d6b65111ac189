"""One opened block of a file: its bytes, unpacked and in UTF-8, line by line, and the place to tell what is bad.

    disk ──Window──▶ bytes start … end ──unpack──▶ chunks ──transcode──▶ Source.chunks, pieces, lines, records

Nothing here grows with the file. A cut or damaged file gives what came before the damage; the damage is told at the
end. A file that grows is read to the size it had when it was listed.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO

from openbook.data.sources.columns import Columns
from openbook.data.sources.document import Bad, Document, Listing, Refused
from openbook.data.sources.unpack import (
    CHUNK,
    PACKED,
    RATIO,
    RATIO_FROM,
    UNPACK,
    Chunks,
    marked,
    plain,
    transcoded,
)
from openbook.data.sources.window import ENDLESS, Block, Damaged, Window
from openbook.errors import DataError, OpenbookWarning

SEPARATOR = "<|endoftext|>"
LONGEST_DOCUMENT = 1 << 26  # bytes of plain text, beyond which it is cut at a line end
LONGEST_LINE = 1 << 26  # bytes of one record: a JSON line, a web page, a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How files are read, whatever their kind."""

    columns: Columns = field(default_factory=Columns)
    separator: str = SEPARATOR
    encoding: str = "utf-8"  # several, by commas: each line is read by the first that fits
    bad: Listing | None = None  # told what cannot be read, and then goes on; None: an error
    longest_line: int = LONGEST_LINE
    longest_document: int = LONGEST_DOCUMENT


class Source:
    """What a reader is handed. `chunks`: the unpacked bytes; `raw`: the file, for kinds that unpack by themselves."""

    def __init__(self, block: Block, options: Options, raw: BinaryIO) -> None:
        self.block, self.options, self.raw = block, options, raw
        self.path, self.columns = block.path, options.columns
        self.refused = 0  # how much was told to be bad
        self.cut = False  # the bytes ended before the file should
        self._fault: Damaged | OSError | None = None
        self._settled = False
        self._window = Window(raw, block)
        packed = io.BufferedReader(self._window, 1 << 17)
        if block.size == ENDLESS:
            begins = packed.peek(8)
            unpack = next((UNPACK[name] for magic, name in PACKED.items() if begins.startswith(magic)), None)
            chunks = unpack(packed) if unpack else plain(packed.read)
        else:
            unpack = UNPACK.get(block.path.suffix.lower())
            chunks = unpack(packed) if unpack else plain(self._window.read)
        chunks = self._guarded(chunks)
        first = next(chunks, b"")
        encoding = "" if block.start else marked(first)
        chunks = chain([first], chunks)
        self.chunks = self._guarded(transcoded(chunks, encoding)) if encoding else chunks
        self.begins = first[:64]
        self.exact = not unpack and not encoding  # bytes that are given are bytes of the file

    def _guarded(self, chunks: Chunks) -> Chunks:
        """The chunks as far as they can be had. What ends them early is kept, and told when all before is read."""
        given = 0
        try:
            for chunk in chunks:
                yield chunk
                given += len(chunk)
                if given > RATIO_FROM and given > RATIO * (self._window.at - self.block.start):
                    why = f"it unpacks to more than {RATIO} times its size, which no text does. The rest is not read."
                    raise Damaged("unpacks without end", why)
        except (Damaged, OSError) as error:
            self._fault = error

    def position(self, at: int) -> int:
        """Bytes of the file on disk that are read when the stream is at byte `at`."""
        return at if self.exact else self._window.at

    def pieces(self, limit: int) -> Iterator[tuple[int, int, bytes]]:
        """(line, byte where it begins, bytes) of whole lines, some at once; a line beyond `limit` comes in parts.

        A part is `limit` bytes and has no line end. Lines are counted from 1, and are 0 in a block that does not begin
        with the file.
        """
        at, counts = self.block.start, not self.block.start
        number = int(counts)
        held: list[bytes] = []  # the begin of a line
        size = 0
        for chunk in _sliced(self.chunks, min(limit, CHUNK)):
            while _beyond(chunk, limit - size):
                piece, chunk = b"".join([*held, chunk[: limit - size]]), chunk[limit - size :]
                held, size = [], 0
                yield number, at, piece
                at += limit
            if last := chunk.rfind(b"\n") + 1:
                piece = b"".join([*held, chunk[:last]]) if held else chunk[:last]
                held, size = [], 0
                yield number, at, piece
                at, number = at + len(piece), number + piece.count(b"\n") * counts
            if last < len(chunk):
                held.append(chunk[last:])
                size += len(chunk) - last
        self.settle()
        if held:
            yield number, at, b"".join(held)

    def whole_lines(self, limit: int) -> Iterator[tuple[int, int, bytes]]:
        """As `pieces`, one line at once. One that is too long, has a zero byte or lacks its end is refused, and
        comes as an empty one."""
        within = False  # a line that was refused
        for number, at, piece in self.pieces(limit):
            zeros = b"\0" in piece
            for line in io.BytesIO(piece):
                here, at = at, at + len(line)
                ends = line.endswith(b"\n")
                if within or (not ends and (len(line) == limit or self.cut)) or (zeros and b"\0" in line):
                    if not within:
                        self._refuse_line(number, here, line, limit)
                        yield number, here, b"\n"
                    within = not ends
                else:
                    yield number, here, line if here else unmarked(line)
                number += number > 0

    def _refuse_line(self, number: int, at: int, line: bytes, limit: int) -> None:
        if (zero := line.find(b"\0")) >= 0:
            self.refuse(self.zero_byte(at + zero, line), number, at)
        elif len(line) == limit:
            why = f"longer than {limit / (1 << 20):g} MiB; make it several records."
            self.refuse(Refused("too long", why), number, at)
        # else its end is lost with the rest of the file, which was told

    def zero_byte(self, at: int, around: bytes) -> Refused:
        hint = "Give UTF-8 text."
        for name, zeros in (("UTF-16LE", around[1:64:2]), ("UTF-16BE", around[0:64:2])):
            if len(zeros) > 1 and zeros.count(0) > len(zeros) // 2:
                hint = f"It looks like {name} without a byte-order mark: `iconv -f {name} -t UTF-8`."
        return Refused("zero byte", f"binary, not text: it has a zero byte at byte {at}. {hint}")

    def whole(self, limit: int) -> bytes:
        """All bytes at once. Raises `Refused` beyond `limit`."""
        parts: list[bytes] = []
        size = 0
        for chunk in self.chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise Refused("too long", f"longer than {limit / (1 << 20):g} MiB, the most for one document.")
        self.settle()
        return b"".join(parts)

    def decode(self, line: bytes) -> str:
        """A line as a string, by the first encoding of the options that fits. Raises `Refused`."""
        first: UnicodeDecodeError | None = None
        for encoding in self.options.encoding.split(","):
            try:
                return line.decode(encoding.strip())
            except UnicodeDecodeError as error:
                first = first or error
            except LookupError as error:
                raise DataError(
                    f"There is no encoding {encoding.strip()!r}: name it as Python does (cp1252, gb18030)."
                ) from error
        assert first is not None
        shown = " ".join(f"{byte:02x}" for byte in line[first.start : first.start + 4])
        named = "UTF-8" if self.options.encoding == "utf-8" else self.options.encoding
        why = (
            f"not {named} text ({shown}: {first.reason}). If it is another encoding, convert it first: "
            "`iconv -f WINDOWS-1252 -t UTF-8`, or say encoding 'utf-8,cp1252' to read such lines as Windows-1252."
        )
        raise Refused("not UTF-8", why, first.start + 1)

    def document(self, record: Mapping[str, Any], line: int, at: int, end: int) -> Document | None:
        """The document that a record is, None where its text is blank. Raises `Refused`."""
        text = self.columns.text_of(record)
        if not text or text.isspace():
            return None
        return Document(text, self.path, line, end, self.columns.meta_of(record), at)

    def refuse(self, what: Refused, line: int = 0, at: int = 0) -> None:
        """Tell of something that is no document: an error, or an entry of the list if one is kept."""
        self.refused += 1
        bad = Bad(self.path, what.reason, what.why, line, at + max(0, what.column - 1), what.column)
        if self.options.bad is None:
            raise DataError(str(bad)) from what
        self.options.bad(bad)

    def settle(self) -> None:
        """The stream has ended: tell, once, if that is not the end of the file, or if the file went on growing."""
        if self._settled:
            return
        self._settled = True
        fault = self._fault
        self.cut = fault is not None
        if isinstance(fault, Damaged):
            self.refuse(Refused(fault.reason, fault.why))
        elif fault is not None:
            raise fault
        if self.block.end < self.block.size or self.block.size == ENDLESS:
            return
        now = os.fstat(self.raw.fileno()).st_size
        if now > self.block.size:
            why = f"it grew from {self.block.size} to {now} bytes while it was read. What was added is left out."
            tell(Bad(self.path, "changed while read", why, note=True), self.options.bad)


def _sliced(chunks: Chunks, size: int) -> Chunks:
    """The same bytes in chunks of at most `size`."""
    for chunk in chunks:
        if len(chunk) <= size:
            yield chunk
        else:
            yield from (chunk[at : at + size] for at in range(0, len(chunk), size))


def _beyond(chunk: bytes, room: int) -> bool:
    """Whether the first line of a chunk does not end where there is room for it."""
    end = chunk.find(b"\n", 0, room) + 1
    return not end and len(chunk) >= room


def unmarked(line: bytes) -> bytes:
    """The begin of a file without UTF-8's byte-order mark."""
    return line.removeprefix(b"\xef\xbb\xbf")


def tell(bad: Bad, listing: Listing | None) -> None:
    """A note, to the list or as a warning."""
    if listing is None:
        warnings.warn(str(bad), OpenbookWarning, stacklevel=3)
    else:
        listing(bad)
