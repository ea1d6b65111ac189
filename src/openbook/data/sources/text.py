"""Plain text: the whole file is one document, unless lines that hold nothing but the separator end documents."""

from __future__ import annotations

from collections.abc import Iterator

from openbook.data.sources.document import Document, Refused
from openbook.data.sources.stream import Source


class _Growing:
    """The document that is being read."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = self.line = self.at = 0
        self.bad = False

    def add(self, text: str, line: int, at: int) -> None:
        if not self.parts:
            self.line, self.at = line, at
        self.parts.append(text)
        self.size += len(text)


def read(source: Source) -> Iterator[Document]:
    """The documents of a block. One too long is cut at a line end; one with a line that is no text is refused."""
    limit, separator = source.options.longest_document, source.options.separator
    growing = _Growing()
    rest = b""  # an incomplete character at the end of a part of a very long line
    at = number = 0
    for number, at, line in source.lines(limit):
        end = source.position(at + len(line))
        if separator and _ends(line, separator):
            yield from _finish(growing, source, end)
            growing = _Growing()
            continue
        if growing.bad:
            continue
        try:
            whole, rest = _whole_characters(rest + line, limit)
            text = _text(source, whole, at)
        except Refused as refused:
            source.refuse(refused, number, at)
            growing, rest = _Growing(), b""
            growing.bad = True
            continue
        growing.add(text, number, at)
        if growing.size >= limit:
            yield from _finish(growing, source, end)
            growing = _Growing()
    if rest and not source.cut:
        try:
            growing.add(_text(source, rest, at), number, at)
        except Refused as refused:
            source.refuse(refused, number, at)
            return
    yield from _finish(growing, source, source.position(source.block.end))


def _ends(line: bytes, separator: str) -> bool:
    """Whether a line is a separator. Most are told apart by their bytes."""
    return len(line) < len(separator) * 4 + 64 and line.decode("utf-8", "replace").strip() == separator


def _text(source: Source, line: bytes, at: int) -> str:
    if (zero := line.find(b"\0")) >= 0:
        raise source.zero_byte(at + zero, line)
    text = source.decode(line)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _whole_characters(line: bytes, limit: int) -> tuple[bytes, bytes]:
    """Part a line that was cut in the middle (it has no line end) before a character that is not complete yet."""
    if line.endswith(b"\n") or len(line) < limit:
        return line, b""
    for back in range(1, 4):
        if line[-back] >= 0xC0:
            return line[:-back], line[-back:]
    return line, b""


def _finish(growing: _Growing, source: Source, end: int) -> Iterator[Document]:
    text = "".join(growing.parts)
    if text and not text.isspace():
        yield Document(text, source.path, growing.line, end, {}, growing.at)
