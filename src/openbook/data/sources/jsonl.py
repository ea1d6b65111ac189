"""`.jsonl` and `.ndjson`: every line is a JSON object, and a document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from openbook.data.sources.document import Document, Refused, sayable
from openbook.data.sources.stream import Source


def read(source: Source) -> Iterator[Document]:
    """The records of a block, one a line."""
    for number, at, line in source.whole_lines(source.options.longest_line):
        if line.isspace():
            continue
        end = source.position(at + len(line))
        try:
            content = source.decode(line)
            del line  # it may be long
            document = source.document(parse(content), number, at, end)
            if document is not None:
                if "\\u" in content:  # the one way half a character comes into valid UTF-8
                    document = sayable(document)
                yield document
        except Refused as refused:
            source.refuse(refused, number, at)


def parse(content: str) -> dict[str, Any]:
    """One line as an object. Raises `Refused`."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        place = "a number of too many digits" if isinstance(error, ValueError) else "nested too deeply"
        if isinstance(error, json.JSONDecodeError):
            place = f"column {error.colno}: {error.msg}"
        why = f"not a JSON object ({place}). Every line of a .jsonl file is one object."
        raise Refused("not JSON", why) from error
    return is_object(record)


def is_object(record: Any) -> dict[str, Any]:
    """`record`, if it is one. Raises `Refused`."""
    if not isinstance(record, dict):
        why = f"a JSON {type(record).__name__} where an object with the text should be."
        raise Refused("not an object", why)
    return record
