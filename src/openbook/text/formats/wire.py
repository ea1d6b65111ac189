"""The wire format of protocol buffers, as far as a SentencePiece model needs it.

A message is a row of fields; a field is a key (its number and how it is written) and a value: a varint, 4 or 8 bytes,
or a length and that many bytes. Nothing is taken on trust: a length that reaches beyond the data is an error, and no
more memory is used than the data has.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends. ValueError: cut off, or more than 64 bits."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: an int for a varint, the bytes for everything else. ValueError: no message."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = varint(data, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"there is no kind of field {kind}")
        if length > len(data) - at or number == 0:
            raise ValueError("a field reaches beyond the end")
        yield number, data[at : at + length]
        at += length
