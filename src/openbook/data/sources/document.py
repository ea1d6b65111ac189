"""What reading gives: documents, and a list of what could not be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SMALL = 1024  # characters of a string that is kept beside the text without being asked for


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the place it came from."""

    text: str
    path: Path
    line: int  # where it begins, from 1: a line, a row of a table, a record of an archive; 0: only `at` is known
    end: int  # bytes of the file (on disk) read so far
    meta: Mapping[str, Any] = field(default_factory=dict)  # what else the record says: language, title, licence …
    at: int = 0  # byte of the unpacked file where it begins (Parquet: where its row group begins)


@dataclass(frozen=True, slots=True)
class Bad:
    """Something that could not be read, or, as a `note`, something to know about a file of which nothing was lost."""

    path: Path
    reason: str  # what it is, in the same words each time: reports count by it
    why: str  # what was found, what is allowed, what to do
    line: int = 0  # as in `Document`
    at: int = 0  # byte of the unpacked file
    column: int = 0  # byte of the line, from 1; 0: the whole line
    note: bool = False

    def __str__(self) -> str:
        place = f", line {self.line}" if self.line else f", byte {self.at}" if self.at else ""
        return f"'{self.path}'{place}{f', byte {self.column}' if self.column and self.line else ''}: {self.why}"


Listing = Callable[[Bad], None]


def whole_characters(text: str) -> None:
    """Raises `Refused` for a text with half a character, which UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        why = f"the text has half a character: \\u{ord(text[error.start]):04x} alone."
        raise Refused("half a character", why) from error


def sayable(document: Document) -> Document:
    """A document that UTF-8 can say. Half a character in its text raises `Refused`; beside it, it becomes a question
    mark, for the text is none the worse for it."""
    whole_characters(document.text)
    said = json.dumps(document.meta, ensure_ascii=False)
    mended = said.encode("utf-8", "replace").decode()
    return document if mended == said else replace(document, meta=json.loads(mended))


class Refused(Exception):
    """A record that is no document. Never leaves this folder: it becomes a `Bad` or a `DataError`."""

    def __init__(self, reason: str, why: str, column: int = 0) -> None:
        super().__init__(why)
        self.reason, self.why, self.column = reason, why, column
