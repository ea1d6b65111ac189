"""One opened block of a file: its bytes, unpacked and in UTF-8, line by line, and the place to tell what is bad.

    disk ──Window──▶ bytes start … end ──unpack──▶ chunks ──transcode──▶ Source.stream

Nothing here grows with the file. A cut or damaged file gives what came before the damage; the damage is told at the
end. A file that grows is read to the size it had when it was listed.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from openbook.data.sources.columns import Columns
from openbook.data.sources.document import Bad, Listing, Refused
from openbook.data.sources.unpack import RATIO, RATIO_FROM, UNPACK, Chunks, Damaged, marked, plain, transcoded
from openbook.errors import DataError, OpenbookWarning
from openbook.files import explain_os_error

SEPARATOR = "<|endoftext|>"
LONGEST_DOCUMENT = 1 << 26  # characters of plain text, beyond which it is cut at a line end
LONGEST_LINE = 1 << 26  # bytes of one record: a JSON line, a web page, a row
NOT_TEXT = {
    b"\x1f\x8b": "a gzip archive: name it .gz",
    b"(\xb5/\xfd": "a Zstandard archive: name it .zst",
    b"BZh": "a bzip2 archive: name it .bz2",
    b"\xfd7zXZ\0": "an xz archive: name it .xz",
    b"%PDF-": "a PDF document: extract its text first",
    b"PK\x03\x04": "a zip archive (or an Office document): extract its text first",
    b"PAR1": "a Parquet table: name it .parquet",
}


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes `start` to `end` of a file on disk that had `size` bytes: it begins and ends between documents."""

    path: Path
    start: int
    end: int
    size: int

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.end == self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How files are read, whatever their kind."""

    columns: Columns = field(default_factory=Columns)
    separator: str = SEPARATOR
    encoding: str = "utf-8"  # several, by commas: each line is read by the first that fits
    bad: Listing | None = None  # told what cannot be read, and then goes on; None: an error
    longest_line: int = LONGEST_LINE
    longest_document: int = LONGEST_DOCUMENT


class Window(io.RawIOBase):
    """The bytes of a block as they lie on the disk."""

    def __init__(self, file: BinaryIO, block: Block) -> None:
        super().__init__()
        self.file, self.block, self.at = file, block, block.start
        if block.start:
            file.seek(block.start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        want = min(len(buffer), self.block.end - self.at)
        data = self.file.read(want) if want > 0 else b""
        if want > 0 and not data:
            why = f"it became shorter while it was read: {self.block.end} bytes were there, now {self.at} are."
            raise Damaged("changed while read", why)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class _Chunked(io.RawIOBase):
    """Chunks as a stream. What ends them early is kept in `fault`, so that all that came before can be read."""

    def __init__(self, chunks: Chunks, window: Window) -> None:
        super().__init__()
        self.chunks, self.window = chunks, window
        self.ready = memoryview(b"")
        self.given = 0
        self.fault: Damaged | OSError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            while not self.ready:
                chunk = next(self.chunks, None)
                if chunk is None:
                    return 0
                self.ready = memoryview(chunk)
        except (Damaged, OSError) as error:
            self.fault, self.chunks = error, iter(())
            return 0
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        self.given += count
        if self.given > RATIO_FROM and self.given > RATIO * (self.window.at - self.window.block.start):
            why = f"it unpacks to more than {RATIO} times its size, which no text does. It is read no further."
            self.fault, self.chunks, self.ready = Damaged("unpacks without end", why), iter(()), memoryview(b"")
        return count


class Source:
    """What a reader is handed. `stream`: the unpacked bytes; `raw`: the file, for kinds that unpack by themselves."""

    def __init__(self, block: Block, options: Options, raw: BinaryIO) -> None:
        self.block, self.options, self.raw = block, options, raw
        self.path, self.columns = block.path, options.columns
        self.refused = 0  # how much was told to be bad
        self.cut = False  # the stream ended before the file should
        self._settled = False
        self._window = Window(raw, block)
        unpack = UNPACK.get(block.path.suffix.lower())
        chunks = unpack(io.BufferedReader(self._window, 1 << 17)) if unpack else plain(self._window)
        try:
            first = next(chunks, b"")
        except Damaged as error:
            first, chunks = b"", _failing(error)
        encoding = "" if block.start else marked(first[:4])
        chunks = chain([first], chunks)
        self._chunked = _Chunked(transcoded(chunks, encoding) if encoding else chunks, self._window)
        self.stream = io.BufferedReader(self._chunked, 1 << 20)
        self.start = first[:8]
        self.exact = not unpack and not encoding  # bytes of the stream are bytes of the file

    def position(self, at: int) -> int:
        """Bytes of the file on disk that are read when the stream is at byte `at`."""
        return at if self.exact else self._window.at

    def lines(self, limit: int) -> Iterator[tuple[int, int, bytes]]:
        """(line, byte where it begins, its bytes), none longer than `limit`: a longer one comes in parts.

        Lines are counted from 1, and are 0 in a block that does not begin with the file.
        """
        at, counts = self.block.start, not self.block.start
        number, whole = 0, True
        readline = self.stream.readline
        while line := readline(limit):
            here, at = at, at + len(line)
            if not here:
                line = line.removeprefix(b"\xef\xbb\xbf")
            number += whole and counts
            whole = line.endswith(b"\n")
            if not whole and len(line) < limit:
                self.settle()
            yield number, here, line
        self.settle()

    def records(self, limit: int) -> Iterator[tuple[int, int, bytes]]:
        """Whole lines that hold something, as in `lines`; one that is too long or has a zero byte is refused."""
        lines = self.lines(limit)
        for number, at, line in lines:
            if len(line) >= limit and not line.endswith(b"\n"):
                for _, _, part in lines:
                    if part.endswith(b"\n") or len(part) < limit:
                        break
                why = f"longer than {limit / (1 << 20):g} MiB; make it several records."
                self.refuse(Refused("too long", why), number, at)
            elif self.cut and not line.endswith(b"\n"):
                return  # the rest of a record whose end is lost, which was told
            elif (zero := line.find(b"\0")) >= 0:
                self.refuse(self.zero_byte(at + zero, line), number, at)
            elif not line.isspace():
                yield number, at, line

    def zero_byte(self, at: int, around: bytes) -> Refused:
        hint = "Give UTF-8 text."
        for name, zeros in (("UTF-16LE", around[1:64:2]), ("UTF-16BE", around[0:64:2])):
            if len(zeros) > 1 and zeros.count(0) > len(zeros) // 2:
                hint = f"It looks like {name} without a byte-order mark: `iconv -f {name} -t UTF-8`."
        return Refused("zero byte", f"binary, not text: it has a zero byte at byte {at}. {hint}")

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
        fault = self._chunked.fault
        self.cut = fault is not None
        if isinstance(fault, Damaged):
            self.refuse(Refused(fault.reason, fault.why))
        elif fault is not None:
            raise fault
        now = os.fstat(self.raw.fileno()).st_size if self.block.size else 0
        if self.block.end == self.block.size < now:
            why = f"it grew from {self.block.size} to {now} bytes while it was read. What was added is left out."
            tell(Bad(self.path, "changed while read", why, note=True), self.options.bad)


def tell(bad: Bad, listing: Listing | None) -> None:
    """A note, to the list or as a warning."""
    if listing is None:
        warnings.warn(str(bad), OpenbookWarning, stacklevel=3)
    else:
        listing(bad)


def _failing(error: Damaged) -> Chunks:
    yield b""
    raise error


@contextmanager
def opened(block: Block, options: Options) -> Iterator[Source]:
    """The block's source. What the system says against opening or reading becomes an `OpenbookError`."""
    try:
        with block.path.open("rb", buffering=0) as raw:
            yield Source(block, options, raw)
    except OSError as error:
        raise explain_os_error(error, block.path, "read") from error
