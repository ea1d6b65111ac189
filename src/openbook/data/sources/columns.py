"""Which part of a record is the text, and what else of it is kept: a value, the same for every kind of record."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from openbook.data.sources.document import SMALL, Refused
from openbook.data.sources.markup import seen
from openbook.errors import UsageError, nearest

_NOTHING: Any = object()  # no value, which is not null


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The text of a record, and what is kept in `Document.meta`.

    `text` is a column; several, which are joined; or a template, `"{title}\\n\\n{text}"`. A column is named by its
    key; where no key has that name, dots lead inward: `data.body.text`. Of several, one whose name ends in `?` may be
    missing or null, and is then empty; numbers are written out. `keep` names other columns to keep (nested ones too);
    None keeps every string of at most 1,024 characters, number and boolean of the record itself. The column `id` is
    kept as `id`. With `html` the text is a piece of a web page, and becomes what a reader sees of it.
    """

    text: str | tuple[str, ...] = "text"
    join: str = "\n\n"
    keep: tuple[str, ...] | None = None
    id: str = ""
    html: bool = False

    parts: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)
    """(what stands before, column) of a template or of several columns; empty for one column."""
    asked: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The columns that the text is made of, as they are asked for: some with `?`."""
    named: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Their names."""

    def __post_init__(self) -> None:
        if not self.text or not all(name for name in self.text):
            raise UsageError("`text` must name the column that holds the text, or several.")
        parts = _template(self.text)
        asked = tuple(name for _, name in parts if name) or (str(self.text),)
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "asked", asked)
        object.__setattr__(self, "named", tuple(name.removesuffix("?") for name in asked))

    def text_of(self, record: Mapping[str, Any]) -> str:
        """The text of a record. Raises `Refused`."""
        text = self._text_of(record)
        if self.html and ("<" in text or "&" in text):
            return seen(text)
        return text

    def _text_of(self, record: Mapping[str, Any]) -> str:
        if not self.parts:
            text = record.get(self.asked[0])
            if isinstance(text, str):
                return text
            text = _find(record, self.asked[0])
        elif isinstance(self.text, tuple):
            text = self.join.join(part for _, name in self.parts if (part := _part(record, name)))
        else:
            text = "".join(before + (_part(record, name) if name else "") for before, name in self.parts)
        if not isinstance(text, str):
            raise _not_text(self.asked[0], text)
        return text

    def kept(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of what a page says of itself."""
        return {key: value for key, value in said.items() if self.keep is None or key in self.keep}

    def meta_of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of a record beside its text."""
        if self.keep is None:
            named = self.named  # spelt out for speed: this is done for every record
            kept = {
                key: value
                for key, value in record.items()
                if (len(value) <= SMALL if type(value) is str else _is_number(value)) and key not in named
            }
        else:
            found = {name: _look(record, name) for name in self.keep}
            kept = {name: plain(value) for name, value in found.items() if value is not _NOTHING}
        if self.id:
            kept["id"] = plain(_find(record, self.id))
        return kept


def _template(text: str | tuple[str, ...]) -> list[tuple[str, str]]:
    """(what stands before, column) of a template or of several columns; empty for the name of one column."""
    if isinstance(text, tuple):
        return [("", name) for name in text]
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"{text!r} is neither a column nor a template like '{{title}}: {{text}}': {error}.") from error
    if all(name is None for _, name, _, _ in parts):
        return []
    if any(name == "" or form or turned for _, name, form, turned in parts):
        raise UsageError(f"{text!r}: what stands in braces is the name of a column, and nothing more.")
    return [(before, name or "") for before, name, _, _ in parts]


def plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(part) for part in value]
    return str(value)


def shape(record: Mapping[str, Any]) -> str:
    """The columns of a record and their types, for a message."""
    shown = [f"{key} {_type(value)}" for key, value in list(record.items())[:12]]
    return ", ".join(shown) + (", …" if len(record) > 12 else "")


def _is_number(value: object) -> bool:
    return type(value) in (int, bool) or (type(value) is float and math.isfinite(value))


def _look(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column, `_NOTHING` where there is none: the whole name first, then inward by its dots."""
    value = record.get(name, _NOTHING)
    if value is _NOTHING and "." in name:
        value = record
        for key in name.split("."):
            value = value.get(key, _NOTHING) if isinstance(value, Mapping) else _NOTHING
    return value


def _find(record: Mapping[str, Any], name: str) -> Any:
    value = _look(record, name)
    if value is _NOTHING:
        options = {
            *record,
            *(f"{key}.{inner}" for key, part in record.items() if isinstance(part, Mapping) for inner in part),
        }
        why = (
            f"no field {name!r}.{nearest(name, options)} Choose the field that holds the text. It has: {shape(record)}."
        )
        raise Refused(f"no field {name!r}", why)
    return value


def _part(record: Mapping[str, Any], name: str) -> str:
    """One of several columns as text."""
    value = _look(record, name.removesuffix("?")) if name.endswith("?") else _find(record, name)
    if name.endswith("?") and (value is None or value is _NOTHING):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _not_text(name, value)
    return value


def _not_text(name: str, value: object) -> Refused:
    inside = f" It has: {shape(value)}; name one as '{name}.KEY'." if isinstance(value, Mapping) else ""
    return Refused(f"field {name!r} is {_type(value)}", f"field {name!r} is {_type(value)}, not a string.{inside}")


def _type(value: object) -> str:
    return type(value).__name__
