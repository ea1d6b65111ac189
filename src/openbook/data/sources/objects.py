"""`.json`: a list of objects, one object, or several one after another (so also what should be named `.jsonl`).

Objects are taken from the stream one by one; the list is never in memory. Behind a place that is not JSON nothing can
be told apart any more: that is where reading ends.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from openbook.data.sources.document import Document, Refused, sayable
from openbook.data.sources.jsonl import is_object
from openbook.data.sources.stream import Source

BETWEEN = re.compile(r"[\s,\ufeff]*")
NEAR = 16  # characters from the end of what is read: an error there may be only that the rest is to come


def read(source: Source) -> Iterator[Document]:
    """The objects of a file; `line` counts them."""
    stream = _Stream(source)
    number = 0
    try:
        for value in stream.values():
            number += 1
            try:
                document = source.document(is_object(value), number, stream.at, source.position(stream.end))
                if document is not None:
                    yield sayable(document)
            except Refused as refused:
                source.refuse(refused, number, stream.at)
    except Refused as refused:
        if not source.cut:  # else that was told
            source.refuse(refused, 0, stream.at)


class _Stream:
    """JSON values of a text that comes in chunks. `at`, `end`: the bytes where the last one begins and ends."""

    def __init__(self, source: Source) -> None:
        self.source, self.limit = source, source.options.longest_line
        self.decoder = codecs.getincrementaldecoder(source.options.encoding.split(",")[0].strip())()
        self.text = ""
        self.at = self.end = 0

    def values(self) -> Iterator[Any]:
        self._read()
        self._skip(BETWEEN)
        within = self.text.startswith("[")
        if within:
            self._drop(1)
        while True:
            self._skip(BETWEEN)
            if not self.text or (within and self.text.startswith("]")):
                return
            self.at = self.end
            value, end = self._value()
            self._check(end)
            self._drop(end)
            yield value

    def _value(self) -> tuple[Any, int]:
        """The value that the text begins with, and where it ends. Reads on as long as the text may be only a part."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text)
                if end < len(self.text) or not self._read():
                    return value, end
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or error.pos > len(self.text) - NEAR
                if not (may_go_on and self._read()):
                    why = f"not JSON ({error.msg}, {error.pos} characters on). The rest of the file is not read."
                    raise Refused("not JSON", why) from error
            except ValueError as error:  # its only other one: the digits of a number have a limit
                raise Refused("not JSON", "a number of too many digits. The rest of the file is not read.") from error
            except RecursionError as error:
                raise Refused("not JSON", "nested too deeply. The rest of the file is not read.") from error

    def _read(self) -> bool:
        """Make the text about twice as long; False if there is no more."""
        self._check(len(self.text))
        parts, size = [self.text], 0
        try:
            for chunk in self.source.chunks:
                parts.append(self.decoder.decode(chunk))
                size += len(chunk)
                if size > len(self.text):
                    break
            else:
                self.source.settle()
                parts.append(self.decoder.decode(b"", final=not self.source.cut))
        except UnicodeDecodeError as error:
            raise Refused("not UTF-8", f"not UTF-8 text ({error.reason}) in what follows. Convert it first.") from error
        self.text = "".join(parts)
        return size > 0

    def _check(self, size: int) -> None:
        if size > self.limit:
            why = f"an object longer than {self.limit / (1 << 20):g} MiB. The rest of the file is not read."
            raise Refused("too long", why)

    def _skip(self, what: re.Pattern[str]) -> None:
        while True:
            found = what.match(self.text)
            self._drop(found.end() if found else 0)
            if self.text or not self._read():
                return

    def _drop(self, count: int) -> None:
        self.end += len(self.text[:count].encode("utf-8", "surrogatepass"))
        self.text = self.text[count:]
