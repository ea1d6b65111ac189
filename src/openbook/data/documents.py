"""Text on disk → documents, one string each, with an error that names the place when something is not text.

What is a document:

- `.jsonl` (also `.ndjson`): every line is a JSON object; its `text` field (another with `field=`) is one document.
- any other file: the whole file is one document, unless it has lines that hold nothing but the separator
  (`<|endoftext|>` unless told otherwise): each of those ends a document. Line ends become a plain newline, and a
  byte-order mark goes.
- `.gz` after either name is read through gzip.
- a folder: all its `.txt`, `.jsonl` and `.ndjson` files (and `.gz` of them), at every depth, in the order of their
  paths; hidden files and folders (`.name`) are passed over. A path with `*`, `?` or `[` that does not exist is a
  pattern, in which `**` is any depth.

A text that is empty or all white space is no document, and a file without any document is an error. A plain-text
document beyond 64 Mi characters is cut at a line end, so that memory stays bounded; files are read line by line.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from openbook.errors import DataError, nearest
from openbook.files import explain_os_error

SEPARATOR = "<|endoftext|>"
JSON_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (".txt", *JSON_SUFFIXES)
LONGEST_DOCUMENT = 1 << 26  # characters
LONGEST_LINE = 1 << 28  # bytes of one JSON line
NOT_TEXT = {
    b"\x1f\x8b": "a gzip archive: name it .gz",
    b"%PDF-": "a PDF document: extract its text first",
    b"PK\x03\x04": "a zip archive (or an Office document): extract its text first",
    b"PAR1": "a Parquet table: write its text column as .jsonl first",
    b"\xff\xfe": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"(\xb5/\xfd": "a Zstandard archive: unpack it first",
}

Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the place it came from."""

    text: str
    path: Path
    line: int  # where it begins, counted from 1
    end: int  # bytes of the file (on disk) read so far
    meta: Mapping[str, Any] = field(default_factory=dict)  # what else the record says: language, title, licence …


def documents(paths: Paths, *, field: str = "text", separator: str = SEPARATOR) -> Iterator[str]:
    """The texts of all documents under `paths`, in a fixed order. Raises `DataError` for what is not text."""
    for path in find_files(paths):
        for document in read_documents(path, field=field, separator=separator):
            yield document.text


def find_files(paths: Paths) -> list[Path]:
    """The files that `paths` (a file, a folder, a pattern, or several) stand for, each once, in a fixed order."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("No text was named: give a .txt or .jsonl file, or a folder of them.")
    found: dict[Path, None] = {}
    for path in map(Path, given):
        for file in _expand(path.expanduser()):
            found.setdefault(file)
    return list(found)


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return _in_folder(path)
    if glob.has_magic(str(path)):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in files if file.is_file()]
        if files:
            return files
        raise DataError(f"No file matches '{path}'.")
    if path.exists():
        raise DataError(f"'{path}' is neither a file nor a folder.")
    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    raise DataError(f"There is no '{path}'.{nearest(path.name, beside) if beside else ''}")


def _in_folder(folder: Path) -> list[Path]:
    files: list[Path] = []
    others: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if _kind(name).endswith(SUFFIXES):
                files.append(Path(place, name))
            else:
                others.add(Path(name).suffix or name)
    if not files:
        seen = f" It has files of other kinds: {', '.join(sorted(others)[:8])}." if others else " It is empty."
        raise DataError(
            f"No {', '.join(SUFFIXES)} file (or .gz of one) under '{folder}'.{seen} "
            "A file of another name is read as plain text when it is named itself."
        )
    return sorted(files)


def _raise(error: OSError) -> None:
    raise explain_os_error(error, Path(error.filename or "."), "read") from error


def _kind(name: str) -> str:
    return name.lower().removesuffix(".gz")


def read_documents(path: Path, *, field: str = "text", separator: str = SEPARATOR) -> Iterator[Document]:
    """The documents of one file. Raises `DataError` with the line or byte of what cannot be read."""
    found = False
    with _opened(path) as (raw, stream):
        if _kind(path.name).endswith(JSON_SUFFIXES):
            read = _json_documents(path, raw, stream, field)
        else:
            read = _text_documents(path, raw, stream, separator)
        for document in read:
            found = True
            yield document
    if not found:
        raise DataError(f"'{path}' holds no text: only white space or empty records. Remove it or fill it.")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, io.BufferedIOBase]]:
    """The file itself (whose position is the progress) and the stream of its unpacked bytes."""
    try:
        with path.open("rb") as raw:
            if not raw.peek(1):
                raise DataError(f"'{path}' is empty (0 bytes): remove it or fill it.")
            if path.name.lower().endswith(".gz"):
                with gzip.open(raw) as stream:
                    yield raw, stream
            else:
                yield raw, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"'{path}' is not a whole gzip file ({error}): it was cut or damaged; fetch it again."
        ) from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


def _lines(path: Path, stream: io.BufferedIOBase, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines as bytes, none longer than `limit` (a longer one comes in parts); binary content is refused."""
    number = at = 0
    whole = True
    while line := stream.readline(limit):
        if not at:
            for magic, what in NOT_TEXT.items():
                if line.startswith(magic):
                    raise DataError(f"'{path}' is not UTF-8 text but {what}.")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if (zero := line.find(b"\0")) >= 0:
            raise DataError(f"'{path}' is binary, not text: it has a zero byte at byte {at + zero}. Give UTF-8 text.")
        number += whole
        yield number, line
        at += len(line)
        whole = line.endswith(b"\n")


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = " ".join(f"{byte:02x}" for byte in line[error.start : error.start + 4])
        raise DataError(
            f"'{path}' is not UTF-8 text: line {number}, byte {error.start + 1} of the line ({shown}): {error.reason}. "
            "If it is another encoding, convert it first: `iconv -f LATIN1 -t UTF-8`."
        ) from error


def _json_documents(path: Path, raw: BinaryIO, stream: io.BufferedIOBase, field: str) -> Iterator[Document]:
    for number, line in _lines(path, stream, LONGEST_LINE):
        if len(line) >= LONGEST_LINE:
            raise DataError(f"'{path}', line {number}: longer than {LONGEST_LINE >> 20} MiB; make it several records.")
        content = _decode(path, number, line)
        if content.strip():
            text = _field(path, number, content, field)
            if text.strip():
                yield Document(text, path, number, raw.tell())


def _field(path: Path, number: int, content: str, field: str) -> str:
    where = f"'{path}', line {number}"
    try:
        record = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"{where}: not a JSON object ({place}). Every line of a .jsonl file is one object.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__} where an object with a {field!r} field should be.")
    if field not in record:
        raise DataError(f"{where}: no field {field!r}.{nearest(field, record)} Choose the field that holds the text.")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {field!r} is {type(text).__name__}, not a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {field!r} has half a character: \\u{ord(text[error.start]):04x} alone."
        ) from error
    return text


def _text_documents(path: Path, raw: BinaryIO, stream: io.BufferedIOBase, separator: str) -> Iterator[Document]:
    parts: list[str] = []
    size, first = 0, 1
    rest = b""  # an incomplete character at the end of a part of a very long line
    for number, line in _lines(path, stream, LONGEST_DOCUMENT):
        line, rest = _whole_characters(rest + line)
        text = _decode(path, number, line).replace("\r\n", "\n").replace("\r", "\n")
        ends = separator != "" and text.strip() == separator
        if not ends:
            parts.append(text)
            size += len(text)
        if ends or size >= LONGEST_DOCUMENT:
            yield from _finish(parts, path, first, raw.tell())
            parts, size, first = [], 0, number + 1
    if rest:
        _decode(path, number, rest)
    yield from _finish(parts, path, first, raw.tell())


def _whole_characters(line: bytes) -> tuple[bytes, bytes]:
    """Part a line that was cut in the middle (it has no line end) before a character that is not complete yet."""
    if line.endswith(b"\n") or len(line) < LONGEST_DOCUMENT:
        return line, b""
    for back in range(1, 4):
        if line[-back] >= 0xC0:
            return line[:-back], line[-back:]
    return line, b""


def _finish(parts: list[str], path: Path, first: int, end: int) -> Iterator[Document]:
    text = "".join(parts)
    if text.strip():
        yield Document(text, path, first, end)
