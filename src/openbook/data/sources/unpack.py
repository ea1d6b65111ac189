"""Packed files → chunks of their bytes. Chunks come as far as they can be had; then `Damaged` says what is wrong."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from openbook.data.sources.window import Damaged
from openbook.errors import MissingExtra

CHUNK = 1 << 18  # bytes
ZSTD_CHUNK = 1 << 12  # packed bytes at once: one block of Zstandard may grow 32,768-fold, this many then to 128 MiB
RATIO, RATIO_FROM = 500, 1 << 28  # no text packs so well: beyond 256 MiB, 500 times the packed size is no text

Chunks = Iterator[bytes]


def plain(read: Callable[[int], bytes]) -> Chunks:
    """The bytes as they are."""
    return iter(lambda: read(CHUNK), b"")


def gzipped(raw: BinaryIO) -> Chunks:
    return _checked("gzip", gzip.GzipFile(fileobj=raw).read1)


def bzipped(raw: BinaryIO) -> Chunks:
    return _checked("bzip2", bz2.BZ2File(raw).read1)


def xzipped(raw: BinaryIO) -> Chunks:
    return _checked("xz", lzma.LZMAFile(raw).read1)


def _checked(kind: str, read: Callable[[int], bytes]) -> Chunks:
    try:
        while chunk := read(CHUNK):
            yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise _not_whole(kind, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's; bz2 says by one without a number that its data are damaged
            raise
        raise _not_whole(kind, error) from error


def _not_whole(kind: str, error: object) -> Damaged:
    why = f"it is not a whole {kind} file ({error}): it was cut or damaged; fetch it again."
    return Damaged("cut or damaged", why)


def zstandard(raw: BinaryIO) -> Chunks:
    library = _zstandard()
    unpacker = library.ZstdDecompressor()
    frame: Any = None
    try:
        while packed := raw.read(ZSTD_CHUNK):
            while packed:
                frame = frame or unpacker.decompressobj()
                if chunk := frame.decompress(packed):
                    yield chunk
                packed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except library.ZstdError as error:
        raise _not_whole("Zstandard", error) from error
    if frame is not None:
        raise _not_whole("Zstandard", "it ends within a frame")


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtra("zstandard", "data", "Reading .zst files") from error
    return zstandard


UNPACK: dict[str, Callable[[BinaryIO], Chunks]] = {
    ".gz": gzipped,
    ".zst": zstandard,
    ".bz2": bzipped,
    ".xz": xzipped,
}

PACKED = {b"\x1f\x8b": ".gz", b"(\xb5/\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}  # how they begin

MARKS = {  # byte-order marks, the longer first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def marked(start: bytes) -> str:
    """The encoding that a byte-order mark declares, empty without one (UTF-8's own mark is taken off elsewhere)."""
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "")


def transcoded(chunks: Chunks, encoding: str) -> Chunks:
    """The same text in UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode("utf-8")
        yield decoder.decode(b"", final=True).encode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged("not UTF-16", f"its byte-order mark says {encoding.upper()}, but {error.reason}.") from error


class Chunked(io.RawIOBase):
    """Chunks as a file that is read from its begin to its end, for readers that ask for one."""

    def __init__(self, chunks: Chunks) -> None:
        super().__init__()
        self.chunks, self.ready = chunks, memoryview(b"")
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.ready = memoryview(chunk)
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        self.given += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Tells the place, which is all that some ask of it."""
        if (offset, whence) not in ((0, io.SEEK_CUR), (self.given, io.SEEK_SET)):
            raise io.UnsupportedOperation("it is read in order only")
        return self.given
