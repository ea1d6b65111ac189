"""Specs as plain data (for JSON and TOML) and back; runs of equal blocks are written once with their number.

    {"type": "Model", "embed": {"type": "Embed", "vocab": 100, …}, "stack": {…, "blocks": [{"repeat": 6, "of": {…}}]}}

Written by hand it may be shorter: `repeat` may stand beside a block's own fields, and a block of one branch may be
given as that branch:

    blocks = [{repeat = 2, place = "plain", layer = {type = "Recurrent", cell = "lstm", hidden = 256}}]

Fields at their default are left out. Reading checks every name and type and says what is known.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from openbook.errors import ConfigError, nearest
from openbook.nn import spec

REPEAT = 10_000  # no stack is deeper


def to_plain(value: Any) -> Any:
    """A spec as dictionaries, lists, numbers and strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {"type": type(value).__name__}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            if item != default:
                plain[field.name] = to_plain(item)
        return plain
    if isinstance(value, tuple):
        runs = [(item, len(list(group))) for item, group in groupby(value)]
        return [to_plain(item) if count == 1 else {"repeat": count, "of": to_plain(item)} for item, count in runs]
    return value


def from_plain(data: Any, kind: Any, where: str = "spec") -> Any:
    """The spec that plain data says; `kind` is the type wanted there."""
    if get_origin(kind) is tuple:
        return _tuple(data, get_args(kind)[0], where)
    if get_origin(kind) is Literal:
        if data not in get_args(kind):
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, get_args(kind)))}: got {data!r}.")
        return data
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if data is None and type(None) in options:
        return None
    if words := [option for option in options if get_origin(option) is Literal]:
        return from_plain(data, words[0], where)
    tuples = [option for option in options if get_origin(option) is tuple]
    if tuples and isinstance(data, list | tuple):
        return from_plain(data, tuples[0], where)
    if isinstance(data, Mapping):
        return _dataclass(data, [option for option in options if dataclasses.is_dataclass(option)], where)
    if float in options and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    plain = [option for option in options if option in (int, float, bool, str)]
    if type(data) not in plain:
        wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise ConfigError(f"{where} must be {wanted}: got {data!r}.")
    return data


def _tuple(data: Any, kind: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise ConfigError(f"{where} must be a list: got {data!r}.")
    items: list[Any] = []
    for number, item in enumerate(data):
        place = f"{where}[{number}]"
        if isinstance(item, Mapping) and "repeat" in item:
            count = item["repeat"]
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= REPEAT:
                raise ConfigError(f"`repeat` of {place} must be 1 to {REPEAT}: got {count!r}.")
            rest = {key: value for key, value in item.items() if key != "repeat"}
            items += [from_plain(rest["of"] if set(rest) == {"of"} else rest, kind, place)] * count
        else:
            items.append(from_plain(item, kind, place))
        if len(items) > REPEAT:
            raise ConfigError(f"{where} must have at most {REPEAT:,} items.")
    return tuple(items)


def _dataclass(data: Mapping[str, Any], options: list[Any], where: str) -> Any:
    if options == [spec.Block] and "layer" in data:
        return spec.Block(branches=(from_plain(data, spec.Branch, where),))
    names = {option.__name__: option for option in options}
    name = data.get("type", next(iter(names)) if len(names) == 1 else None)
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"`type` of {where} must be one of {', '.join(names) or 'nothing'}: got {name!r}.")
    kind = names[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind, vars(spec))
    values = {}
    for key, item in data.items():
        if key == "type":
            continue
        if key not in fields:
            raise ConfigError(f"Unknown key `{key}` in {where} ({name}).{nearest(key, fields)}")
        values[key] = from_plain(item, hints[key], f"{where}.{key}")
    missing = [
        key
        for key, field in fields.items()
        if key not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} ({name}) needs {', '.join(f'`{key}`' for key in missing)}.")
    return kind(**values)
