"""Plain text: the whole file is one document, unless lines that hold nothing but the separator end documents.

Lines are read many at once where that is sure to give the same; else (an encoding of its own, a zero byte, a document
that grows too long) one by one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from openbook.data.sources.document import Document, Refused
from openbook.data.sources.stream import Source, unmarked


def read(source: Source) -> Iterator[Document]:
    """The documents of a block. One too long is cut at a line end; one with a line that is no text is refused."""
    growing = _Growing(source)
    for first, start, piece in source.pieces(growing.limit):
        for number, at, lines, ends in _segments(first, start, piece, source.options.separator):
            if ends:
                yield from growing.finish(at + len(lines))
            elif not growing.add_at_once(number, at, lines):
                yield from growing.add_one_by_one(number, at, lines)
    yield from growing.finish(source.block.end)


def _segments(number: int, at: int, piece: bytes, separator: str) -> Iterator[tuple[int, int, bytes, bool]]:
    """(line, byte, bytes, whether it is a separator) of a piece: its separator lines, and all that stands between."""
    sought = separator.encode()
    begin = search = 0
    while sought and (hit := piece.find(sought, search)) >= 0:
        first, search = piece.rfind(b"\n", 0, hit) + 1, piece.find(b"\n", hit) + 1 or len(piece)
        if piece[first:search].decode("utf-8", "replace").strip() != separator:
            continue
        if begin < first:
            yield number, at + begin, piece[begin:first], False
            number += piece.count(b"\n", begin, first) * (number > 0)
        yield number, at + first, piece[first:search], True
        begin, number = search, number + (number > 0)
    if begin < len(piece):
        yield number, at + begin, piece[begin:], False


class _Growing:
    """The document that is being read."""

    def __init__(self, source: Source) -> None:
        self.source, self.limit = source, source.options.longest_document
        self.encoding = source.options.encoding.split(",")[0].strip()
        self.rest = b""  # an incomplete character at the end of a part of a very long line
        self._clear()

    def _clear(self) -> None:
        self.parts: list[str] = []
        self.size = self.line = self.at = 0
        self.bad = False

    def _add(self, text: str, size: int, line: int, at: int) -> None:
        if not self.parts:
            self.line, self.at = line, at
        self.parts.append(text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text)
        self.size += size

    def add_at_once(self, number: int, at: int, lines: bytes) -> bool:
        """Whether that was possible."""
        if self.bad or self.rest or len(lines) >= self.limit - self.size or b"\0" in lines:
            return self.bad
        try:
            text = (lines if at else unmarked(lines)).decode(self.encoding)
        except (UnicodeDecodeError, LookupError):
            return False
        self._add(text, len(lines), number, at)
        return True

    def add_one_by_one(self, number: int, at: int, lines: bytes) -> Iterator[Document]:
        """The documents that become too long on the way."""
        for line in io.BytesIO(lines):
            before = len(self.rest)
            whole, self.rest = _whole_characters(self.rest + (line if at else unmarked(line)), self.limit)
            self._add_line(number, at - before, whole)
            number, at = number + (number > 0), at + len(line)
            if self.bad:
                break
            if self.size >= self.limit:
                yield from self._cut(at)

    def _add_line(self, number: int, at: int, line: bytes) -> None:
        try:
            if (zero := line.find(b"\0")) >= 0:
                raise self.source.zero_byte(at + zero, line)
            self._add(self.source.decode(line), len(line), number, at)
        except Refused as refused:
            self._clear()
            self.bad = True  # until its end
            self.source.refuse(refused, number, at)

    def finish(self, end: int) -> Iterator[Document]:
        """The document ends at byte `end`."""
        if self.rest and not self.bad and not self.source.cut:
            self._add_line(self.line, self.at, self.rest)
        self.rest = b""
        yield from self._cut(end)

    def _cut(self, end: int) -> Iterator[Document]:
        text, line, at = "".join(self.parts), self.line, self.at
        self._clear()
        if text and not text.isspace():
            yield Document(text, self.source.path, line, self.source.position(end), {}, at)


def _whole_characters(line: bytes, limit: int) -> tuple[bytes, bytes]:
    """Part a line that was cut in the middle (it has no line end) before a character that is not complete yet."""
    if line.endswith(b"\n") or len(line) < limit:
        return line, b""
    for back in range(1, 4):
        if line[-back] >= 0xC0:
            return line[:-back], line[-back:]
    return line, b""
