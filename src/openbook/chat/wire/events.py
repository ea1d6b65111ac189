"""Server-sent events: bytes in pieces of any size → the data of events. However the bytes are split, it is the same.

    reader = Events()
    for piece in pieces:
        for data in reader.feed(piece): ...
    for data in reader.finish(): ...

Source: the HTML standard, section 9.2 (an event ends at an empty line; lines end in LF, CR or CRLF; `:` begins a
comment). Where we differ: an event that the end of the stream cuts off is given out too, for some servers leave the
last empty line out; `event`, `id` and `retry` say nothing here.
"""

from __future__ import annotations

import re

from openbook.errors import RemoteError

LARGEST = 8 * 1024 * 1024  # bytes of one event: more is no answer of a language model
_BREAK = re.compile(rb"\r\n|\r|\n")
_MARK = b"\xef\xbb\xbf"  # a byte order mark, which may begin a stream


class Events:
    """Reads one stream."""

    def __init__(self) -> None:
        self._line = bytearray()  # begun and not ended
        self._data: list[bytes] = []  # of the event that is not ended
        self._size = 0
        self._returned = False  # the last byte was a CR: an LF that follows belongs to it
        self._first = True

    def feed(self, piece: bytes) -> list[str]:
        """The data of events that end in `piece`."""
        if self._returned and piece:
            piece = piece.removeprefix(b"\n")
            self._returned = False
        if not piece:
            return []
        self._returned = piece.endswith(b"\r")
        *lines, rest = _BREAK.split(piece)
        found: list[str] = []
        for line in lines:
            self._line += line
            self._end_line(found)
        self._line += rest
        self._check()
        return found

    def finish(self) -> list[str]:
        """The data of an event that the end of the stream ends."""
        found: list[str] = []
        if self._line:
            self._end_line(found)
        self._end_line(found)
        return found

    def _end_line(self, found: list[str]) -> None:
        self._check()
        line = bytes(self._line)
        self._line.clear()
        if self._first:
            line = line.removeprefix(_MARK)
            self._first = False
        if not line:
            if self._data:
                found.append(b"\n".join(self._data).decode(errors="replace"))
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 1

    def _check(self) -> None:
        if self._size + len(self._line) > LARGEST:
            raise RemoteError(f"An event of the stream is larger than {LARGEST} bytes: this is no answer of a model.")
