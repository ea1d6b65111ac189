"""Marks in what a model writes, and JSON as far as a call of a tool needs it; see `hearing.py`."""

from __future__ import annotations

import json

SPACE = " \n\r\t"  # white space in JSON, and in marks


class Broken(Exception):
    """What was taken for a call is none."""


def fits(mark: str, held: str) -> bool | None:
    """Whether `held` is `mark`; None: it may become it. White space does not count before it and where it has some."""
    at, size = 0, len(held)
    for word in mark.split():
        while at < size and held[at] in SPACE:
            at += 1
        part = held[at : at + len(word)]
        if not word.startswith(part):
            return False
        if len(part) < len(word):
            return None
        at += len(word)
    return at == size


def ending(between: str, text: str) -> int:
    """With how many characters of `text`, its last ones, `between` ends it; 0: it does not."""
    word = between.split()
    if not word:
        return len(text) - len(text.rstrip())
    if not text.endswith(word[-1]):
        return 0
    return next((len(text) - at for at in range(len(text) - 1, -1, -1) if fits(between, text[at:])), 0)


def string_of(written: str) -> str:
    """What a JSON string says."""
    try:
        value = json.loads(written, strict=False)
    except json.JSONDecodeError:
        raise Broken from None
    if not isinstance(value, str):
        raise Broken
    return value


def object_of(written: str) -> str:
    """Arguments that came before the name, or as a JSON text in a string, or not at all."""
    text = string_of(written) if written.startswith('"') else written
    if text == "null":
        return "{}"
    if not text.lstrip().startswith("{"):
        raise Broken
    return text.strip()


def id_of(number: str, length: int | None) -> str:
    """The id that the model gave, where it is one; else nothing."""
    fits = (
        number.isascii() and number.isalnum() and len(number) == length if length is not None else number.isprintable()
    )
    return number if fits and len(number) <= 64 else ""
