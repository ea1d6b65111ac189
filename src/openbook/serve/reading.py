"""From the bytes of a request to its type: JSON as RFC 8259 has it, and nothing looser.

Of a key that stands twice the last counts. A number that is whole is an integer however it is written (1, 1.0, 1e0), as
JSON schema has it. What is not JSON, not UTF-8, or nested too deep is a 400 like any other.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from openbook.serve.errors import Rejected

T = TypeVar("T", bound=msgspec.Struct)
INTEGERS = 2.0**53  # below it a float is the number that was written


def read(body: bytes, kind: type[T]) -> T:
    """The request in `body`. `msgspec.ValidationError` says what does not fit the type; `Rejected`, what is no JSON."""
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            return msgspec.convert(_whole(msgspec.json.decode(body)), type=kind)
    except UnicodeDecodeError as error:
        raise Rejected(
            400, f"The body is not UTF-8: {error.reason} at byte {error.start}.", code="invalid_json"
        ) from None
    except RecursionError:
        raise Rejected(400, "The body is nested too deep.", code="invalid_json") from None


def _whole(value: Any) -> Any:
    """`value` with integers for the floats that are whole."""
    match value:
        case dict():
            return {key: _whole(one) for key, one in value.items()}
        case list():
            return [_whole(one) for one in value]
        case float() if value.is_integer() and abs(value) < INTEGERS:
            return int(value)
    return value
