"""Grammars that an output may be held to: plain values, checked at the edge. What enforces them is `constraints.py`.

A JSON schema is honoured or refused, never honoured in part: every keyword must be one that is enforced, or one that
says nothing about documents (a title). Everything else is an error that names the keyword and its place, such as
`#/properties/name/uniqueItems`. Stricter than the standard in what is written, never looser:

    escapes      characters are written as themselves, only " \\ and \\b \\f \\n \\r \\t are escaped, so that no
                 property can hide behind another spelling of its name
    whitespace   at most `constraints.GAP` characters between two parts, so that a model cannot pad for ever
    order        properties are written in the order of the schema

Looser in nothing, with two notes. `format` is held to its syntax: 2023-02-29 is a date. Names of additional
properties may come twice (readers keep one), so `minProperties` beyond 1 needs `additionalProperties` false.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from openbook.errors import InputError, nearest

LARGEST = 64 * 1024  # bytes of a grammar
DEEPEST = 64  # levels of a schema
REMAINDERS = 10_000  # of `multipleOf`
EXACT = 2**53  # beyond, numbers are rounded where they are enforced
EXCLUSIVE = ("exclusiveMaximum", "exclusiveMinimum")
ESCAPED = "\b\f\n\r\t"  # control characters that have a short escape

# Keywords whose value is a schema, a list of them, a mapping to them; and those with a plain value.
ONE = ("additionalItems", "additionalProperties")
LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPPING = ("$defs", "definitions", "patternProperties", "properties")
PLAIN = (
    "$ref", "$anchor", "const", "enum", *EXCLUSIVE, "format", "maxItems", "maxLength",
    "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern",
    "required", "type",
)  # fmt: skip
ANNOTATIONS = (
    "$comment", "$schema", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly",
)  # fmt: skip
KEYWORDS = (*ONE, *LIST, *MAPPING, *PLAIN, "items")
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")


@dataclass(frozen=True)
class Schema:
    """A JSON document that a JSON schema (as JSON text) describes."""

    text: str

    def __post_init__(self) -> None:
        _check_text("schema", self.text)
        check_schema(_parsed(self.text))

    @staticmethod
    def of(schema: Mapping[str, Any] | bool) -> Schema:
        """From a schema as Python values."""
        try:
            return Schema(json.dumps(schema, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"The schema is no JSON: {error}. Use strings, numbers, lists and mappings.") from error


@dataclass(frozen=True)
class Regex:
    """A text that a regular expression matches as a whole. No look-around, no back-references."""

    text: str

    def __post_init__(self) -> None:
        _check_text("regex", self.text)


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.options, (str, bytes, Mapping)) or not isinstance(self.options, Iterable):
            raise InputError(f"`choice` must be a sequence of texts: got {self.options!r:.80}.")
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise InputError("`choice` has no options: give at least one text.")
        for option in self.options:
            _check_text("choice", option)
        total = sum(len(option.encode()) for option in self.options)
        if total > LARGEST:
            raise InputError(f"The options of `choice` have {total} bytes together: at most {LARGEST} are taken.")


@dataclass(frozen=True)
class Lark:
    """A text of a context-free grammar in Lark's syntax, with the rule `start`."""

    text: str

    def __post_init__(self) -> None:
        _check_text("lark", self.text)


@dataclass(frozen=True)
class Json:
    """Any JSON object."""


Piece = str | int  # of a mark: a text, or the id of a special token
Mark = tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How calls are written:  start, opens, a call, closes, separator, opens, a call, closes, …, end

    keys      of name and arguments in a JSON object, which is the call; None: a call is name, `between`, arguments
    behind    not empty: then an id stands between `between` and this mark, which the arguments follow
    id_key    under which an object may hold an id
    id_length letters and digits of an id; None: any
    """

    start: Mark = ()
    opens: Mark = ()
    between: Mark = ()
    behind: Mark = ()
    closes: Mark = ()
    separator: Mark = ()
    end: Mark = ()
    keys: tuple[str, str] | None = None
    id_key: str | None = None
    id_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls of functions, or else what `otherwise` describes (None: any text, which may also stand before the calls).

    functions   their names, and what their arguments must be
    required    there must be a call
    parallel    there may be several
    """

    functions: tuple[tuple[str, Schema | Json], ...]
    marks: Marks
    required: bool = False
    parallel: bool = True
    otherwise: Grammar | None = None

    def __post_init__(self) -> None:
        if not self.functions:
            raise InputError("There is no function that could be called: give at least one.")


@dataclass(frozen=True, kw_only=True)
class Reasoned:
    """Any text up to the mark `closing`, then what `then` describes.

    begun: the prompt ended with the mark `opening`. Otherwise the output may begin with it, or do without reasoning.
    """

    opening: Mark
    closing: Mark
    begun: bool
    then: Grammar


Grammar = Schema | Regex | Choice | Lark | Json | Calls | Reasoned


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise InputError(f"`{name}` must be a text that is not empty: got {text!r:.80}.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"`{name}` is no valid Unicode (a lone surrogate at character {error.start}).") from error
    if size > LARGEST:
        raise InputError(f"`{name}` has {size} bytes: at most {LARGEST} are taken.")


def _parsed(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"The schema names {twice[0]!r} twice in one object: keep one of the two.")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise InputError(f"The schema holds {constant}, which is no JSON number.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"The schema is no JSON: {error.msg} at {where}.") from error
    except RecursionError as error:
        raise InputError(f"The schema is nested too deeply: at most {DEEPEST} levels are taken.") from error


def check_schema(schema: Any) -> None:
    """Raises `InputError` for a schema (parsed JSON) that cannot be enforced whole: the keyword and its place."""
    parts = dict(_walk(schema, "#", 0))
    anchors: set[str] = set()
    divisors: set[int] = set()
    for where, part in parts.items():
        if isinstance(part, dict):
            _check_part(where, part)
            _check_divisor(where, part.get("multipleOf"), divisors)
            anchors |= {f"#{part['$anchor']}"} if isinstance(part.get("$anchor"), str) else set()
    for where, part in parts.items():
        if isinstance(part, dict) and "$ref" in part:
            target = part["$ref"]
            if not isinstance(target, str) or (unquote(target) not in parts and target not in anchors):
                raise InputError(
                    f"`$ref` at {where} must point at a schema inside this one, such as '#/$defs/name': "
                    f"got {target!r:.80}."
                )


def _walk(part: Any, where: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Each schema in a schema, with its place."""
    if depth > DEEPEST:
        raise InputError(f"The schema is nested more than {DEEPEST} levels deep, at {where[:80]}….")
    if not isinstance(part, (dict, bool)):
        raise InputError(f"A schema must be an object, true or false: got {part!r:.80} at {where}.")
    yield where, part
    if isinstance(part, bool):
        return
    for key, value in part.items():
        place = f"{where}/{_escaped(key)}"
        if key in ONE or (key == "items" and not isinstance(value, list)):
            yield from _walk(value, place, depth + 1)
        elif key in LIST or key == "items":
            if not isinstance(value, list):
                raise InputError(f"`{key}` must be a list of schemas: got {value!r:.80} at {place}.")
            for number, item in enumerate(value):
                yield from _walk(item, f"{place}/{number}", depth + 1)
        elif key in MAPPING:
            if not isinstance(value, dict):
                raise InputError(f"`{key}` must map names to schemas: got {value!r:.80} at {place}.")
            for name, item in value.items():
                yield from _walk(item, f"{place}/{_escaped(name)}", depth + 1)
        elif key not in PLAIN and key not in ANNOTATIONS and not (key == "$id" and where == "#"):
            raise InputError(f"The schema keyword `{key}` at {place} is not supported.{nearest(key, KEYWORDS)}")


def _check_part(where: str, part: dict[str, Any]) -> None:
    """Values that would be enforced in part only, or fail without a place."""
    name = part.get("format", FORMATS[0])
    if name not in FORMATS:
        raise InputError(f"The schema format {name!r} at {where}/format is not supported.{nearest(str(name), FORMATS)}")
    least = part.get("minProperties", 0)
    closed = part.get("additionalProperties") is False and not part.get("patternProperties")
    if isinstance(least, (int, float)) and least > 1 and not closed:
        raise InputError(
            f"The schema keyword `minProperties` at {where}/minProperties is supported up to 1, or with "
            f"`additionalProperties` false and no `patternProperties`: got {least}. Use `required`."
        )
    names = [*part.get("properties", {}), *(part["required"] if isinstance(part.get("required"), list) else ())]
    values = [part.get(key) for key in ("const", "enum", "minimum", "maximum", *EXCLUSIVE, "multipleOf")]
    for leaf in [*names, *(leaf for value in values for leaf in _leaves(value, 0))]:
        if isinstance(leaf, str) and any((c < " " or c == "\x7f") and c not in ESCAPED for c in leaf):
            raise InputError(
                f"The schema holds {leaf!r:.80} at {where}: of control characters \\b \\f \\n \\r \\t are supported."
            )
        if isinstance(leaf, (int, float)) and abs(leaf) > EXACT:
            raise InputError(
                f"The schema holds the number {leaf!s:.80} at {where}: up to {EXACT} (2**53) are supported."
            )


def _check_divisor(where: str, value: Any, divisors: set[int]) -> None:
    """Remainders are states of an automaton, multiplied where divisors meet: too many would exhaust memory."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        return  # what it may be otherwise is said when it is compiled
    divisors.add(Fraction(str(value)).numerator)
    if math.prod(divisors) > REMAINDERS:
        raise InputError(
            f"The schema keyword `multipleOf` at {where}/multipleOf is supported up to {REMAINDERS:,}, all different "
            f"ones of a schema multiplied (decimals as whole numbers): got {value}."
        )


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """The texts (names among them) and numbers in a JSON value."""
    if depth > DEEPEST:
        raise InputError(f"The schema holds a value that is nested more than {DEEPEST} levels deep.")
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item, depth + 1)
    else:
        yield value


def _escaped(name: str) -> str:
    """A name in a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
