"""Keys as data: a table says which key of a config.json holds which field of a spec value, and is run both ways.

`{spec.Selective: {"state": ("state_size", 16)}}` says that the field `state` of a `Selective` stands under
`state_size`, and is 16 where a config.json is silent. The default's type says how it is read: a whole number is a size,
at least 1; a string is an activation by its published name; a type means none, or one of that type; a key alone
is a size that must be there. What follows from several keys, `to_spec` and `from_spec` say. names.py is the same for
tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from openbook.models.config import ACTIVATION_NAMES, Config, spell_activation
from openbook.models.family import CannotSay
from openbook.nn import spec

Default = int | float | bool | str | type
Fields = Mapping[str, str | tuple[str, Default]]  # field → key, or key and default
Table = Mapping[type, Fields]  # kind of spec value → its fields
P = TypeVar("P")


def biases(key: str, default: bool) -> Fields:
    """Biases on all four maps of attention, under one key."""
    return {"bias": (key, default), "out_bias": (key, default)}


def read(config: Config, table: Table) -> dict[type, dict[str, Any]]:
    """The fields of each kind of value, as the config.json says them."""
    return {kind: take(config, fields) for kind, fields in table.items()}


def take(config: Config, fields: Fields) -> dict[str, Any]:
    """The fields of one value."""
    return {field: _take(config, *_row(row)) for field, row in fields.items()}


def write(model: spec.Model, table: Table) -> dict[str, Any]:
    """The keys of a config.json, off the first value of each kind: what else there is shows when it is read back."""
    return {key: value for kind, fields in table.items() for key, value in say(first(model, kind), fields).items()}


def say(value: Any, fields: Fields) -> dict[str, Any]:
    """The keys that `take` reads, off one value."""
    return {_row(row)[0]: _spell(getattr(value, field), _row(row)[1]) for field, row in fields.items()}


def _row(row: str | tuple[str, Default]) -> tuple[str, Default | None]:
    return (row, None) if isinstance(row, str) else row


def _take(config: Config, key: str, default: Default | None) -> Any:
    if isinstance(default, type):
        return config.get(key, None, default)
    if isinstance(default, str):
        return config.activation(key, default)
    if isinstance(default, bool | float):
        return config.get(key, default)
    return config.size(key, default)


def _spell(value: Any, default: object) -> Any:
    """An activation by its published name: the family's usual one, if that is one of its names."""
    if not isinstance(default, str):
        return value
    return default if ACTIVATION_NAMES[default] == value else spell_activation(value)


def first(model: spec.Model, kind: type[P]) -> P:
    """The first value of a kind in a decoder or encoder; none is more than a family can say that needs one."""
    found = next((part for part in _parts(model) if isinstance(part, kind)), None)
    if found is None:
        raise CannotSay(f"there is no {kind.__name__}")
    return found


def _parts(model: spec.Model) -> Iterator[object]:
    for block in model.stack.blocks:
        yield block.norm
        for branch in block.branches:
            yield from (branch, branch.norm, branch.layer)
            if isinstance(branch.layer, spec.MoE):
                yield from (branch.layer.routing, branch.layer.expert)
    yield from (model.stack.final_norm, model.stack.relative, model.embed)
