"""`.jsonl` and `.ndjson`: every line is a JSON object, and a document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from openbook.data.sources.document import Document, Refused
from openbook.data.sources.stream import Source


def read(source: Source) -> Iterator[Document]:
    """The records of a block, one a line."""
    columns = source.columns
    for number, at, line in source.records(source.options.longest_line):
        end = source.position(at + len(line))
        try:
            content = source.decode(line)
            del line
            record = parse(content)
            text = columns.text_of(record)
            if "\\u" in content:  # the one way half a character comes into valid UTF-8
                whole_characters(text)
        except Refused as refused:
            source.refuse(refused, number, at)
            continue
        if text and not text.isspace():
            yield Document(text, source.path, number, end, columns.meta_of(record), at)


def parse(content: str) -> dict[str, Any]:
    """One line as an object. Raises `Refused`."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        place = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        why = f"not a JSON object ({place}). Every line of a .jsonl file is one object."
        raise Refused("not JSON", why) from error
    if not isinstance(record, dict):
        why = f"a JSON {type(record).__name__} where an object with the text should be."
        raise Refused("not an object", why)
    return record


def whole_characters(text: str) -> None:
    """Raises `Refused` for a text with half a character, which UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        why = f"the text has half a character: \\u{ord(text[error.start]):04x} alone."
        raise Refused("half a character", why) from error
