"""One typed tree: dataclasses → TOML recipe → command line.

A configuration is a dataclass whose fields are numbers, strings, paths, literals, tuples, dicts and further
dataclasses. The same tree is read from a TOML file (`load`), changed from the command line (`--data.block 512`, through
tyro, in options.py), printed and saved as TOML (`to_toml`, `save`), and read back equal.

An unknown key, a wrong type or a missing value is an error that names the file, the dotted path and the nearest key.
TOML has no null: in a field that may be `None`, the text `None` means no value, in a file as on the command line.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from openbook.errors import ConfigError, nearest
from openbook.files import explain_os_error, write_atomic

T = TypeVar("T")
NONE_TEXT = "None"
ABSENT = dataclasses.MISSING


def load(cls: type[T], path: str | Path | None, overrides: Sequence[str] = (), *, prog: str = "openbook") -> T:
    """The tree of type `cls` that the recipe at `path` and then the command line's `overrides` describe.

    Fields that neither names keep their defaults. Checks across fields (`__post_init__`) run once, on the result.
    Errors: ConfigError for the recipe, UsageError for the overrides.
    """
    tree = read_toml(Path(path)) if path is not None else {}
    source = f"'{path}'" if path is not None else "the defaults"
    try:
        if not overrides:
            return from_tree(cls, tree, source=source)
        from openbook.options import parse

        return parse(cls, overrides, tree=tree, source=source, prog=prog)
    except ConfigError as error:
        if path is None or str(path) in str(error):
            raise
        raise ConfigError(f"{error} (recipe '{path}')") from error


def save(instance: Any, path: str | Path) -> None:
    """Write the whole resolved tree as TOML, atomically."""
    write_atomic(path, to_toml(instance))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict; a missing or damaged one is an error that says where."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except FileNotFoundError as error:
        there = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise ConfigError(f"There is no recipe '{path}'.{nearest(str(path), there) if there else ''}") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not UTF-8 text (byte {error.start}): it is not a TOML recipe.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{path}' is not valid TOML: {error}. Texts need quotes.") from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' nests too deeply to be a recipe.") from error


# ---------------------------------------------------------------------------------------------- tree → dataclass


def from_tree(
    cls: type[T], tree: Mapping[str, Any], *, source: str, path: str = "", base: Any = ABSENT, raw: Any = ABSENT
) -> T:
    """An instance of the dataclass `cls` from plain values, every one checked against its field's type.

    `base` gives the values of fields that `tree` does not name (the field defaults otherwise). With a `raw` marker
    nothing is constructed yet: an instance without its `__post_init__`, missing fields holding the marker, for the
    command line to complete.
    """
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    _refuse_unknown(cls, tree, known, source, path)
    hints = get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    missing = []
    for name, field in known.items():
        default = getattr(base, name) if base is not ABSENT else _default(field)
        where = f"{path}{name}"
        if name in tree or (default is ABSENT and dataclasses.is_dataclass(bare(hints[name]))):
            values[name] = _convert(tree.get(name, {}), hints[name], source, where, default, raw)
        elif default is ABSENT and raw is ABSENT:
            missing.append(where)
        else:
            values[name] = default
    if missing:
        raise ConfigError(f"{_listed(missing)} must be given: {source} does not, and there is no default.")
    return cls(**values) if raw is ABSENT else _unchecked(cls, values, raw)


def _refuse_unknown(cls: type, tree: Mapping[str, Any], known: Mapping[str, Any], source: str, path: str) -> None:
    for name in tree:
        if name in known:
            continue
        hint = nearest(name, known)
        elsewhere = [dotted for dotted, _, _ in leaves(cls) if dotted.rpartition(".")[2] == name] if not path else []
        if elsewhere:
            hint = f" It belongs to {_listed(elsewhere)}."
        table = f" in [{path.rstrip('.')}]" if path else ""
        raise ConfigError(f"Unknown key '{name}'{table} of {source}.{hint}")


def _unchecked(cls: type[T], values: Mapping[str, Any], raw: Any) -> T:
    instance = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(instance, name, raw if value is ABSENT else value)
    return instance


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not ABSENT else field.default


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{n}`" for n in names]
    return ", ".join(quoted[:-1]) + " and " + quoted[-1] if len(quoted) > 1 else quoted[0]


def bare(hint: Any) -> Any:
    """A type without its `Annotated` wrapping."""
    return bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type."""
    hint = bare(hint)
    return tuple(bare(a) for a in get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _convert(value: Any, hint: Any, source: str, where: str, default: Any, raw: Any) -> Any:
    """`value` (as TOML gives it) as the type `hint`, or a ConfigError at `where`."""
    arms = alternatives(hint)
    if types.NoneType in arms and (value is None or value == NONE_TEXT):
        return None
    structs = [a for a in arms if dataclasses.is_dataclass(a)]
    if structs and isinstance(value, Mapping):
        cls = _struct_for(structs, value, default)
        base = default if isinstance(default, cls) else ABSENT
        return from_tree(cls, value, source=source, path=f"{where}.", base=base, raw=raw)
    exact = [a for a in arms if a is type(value)] + [a for a in arms if a is not type(value)]
    for arm in exact:
        with_value = _as(value, arm, source, where, raw)
        if with_value is not ABSENT:
            return with_value
    literals = [str(c) for arm in arms if get_origin(arm) is Literal for c in get_args(arm)]
    close = nearest(str(value), literals) if literals else ""
    meant = close if "Did you mean" in close else ""
    raise ConfigError(f"`{where}` must be {describe_type(hint)}: got {_shown(value)} ({source}).{meant}")


def _struct_for(structs: Sequence[Any], value: Mapping[str, Any], default: Any) -> Any:
    """Of several dataclasses the one that knows all given keys, the default's own first."""
    ordered = sorted(structs, key=lambda s: not isinstance(default, s))
    return next((s for s in ordered if set(value) <= {f.name for f in dataclasses.fields(s)}), ordered[0])


def _as(value: Any, arm: Any, source: str, where: str, raw: Any) -> Any:
    """`value` as the single type `arm`, or ABSENT if it is not one."""
    origin, inner = get_origin(arm) or arm, get_args(arm)
    if arm is Any:
        return value
    if origin is Literal:
        return value if any(value == c and type(value) is type(c) for c in inner) else ABSENT
    if arm in (bool, int, str):
        return value if type(value) is arm else ABSENT
    if arm is float:
        return float(value) if type(value) in (int, float) else ABSENT
    if arm is Path:
        return Path(value) if isinstance(value, str | Path) else ABSENT
    if origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        return _as_sequence(value, origin, inner, source, where, raw)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {k: _convert(v, inner[1], source, f"{where}.{k}", ABSENT, raw) for k, v in value.items()}
    return ABSENT


def _as_sequence(value: Sequence[Any], origin: Any, inner: Sequence[Any], source: str, where: str, raw: Any) -> Any:
    repeated = origin is not tuple or (len(inner) == 2 and inner[1] is Ellipsis)
    if not repeated and len(inner) != len(value):
        return ABSENT
    of = [inner[0]] * len(value) if repeated else inner
    pairs = enumerate(zip(value, of, strict=True))
    items = [_convert(v, t, source, f"{where}[{i}]", ABSENT, raw) for i, (v, t) in pairs]
    return items if origin is list else tuple(items)


def describe_type(hint: Any) -> str:
    """A type in words: `a whole number`, `one of 'a', 'b'`, `a list of numbers`."""
    arms = [a for a in alternatives(hint) if a is not types.NoneType]
    return " or ".join(_describe_arm(a) for a in arms) + (" or 'None'" if types.NoneType in alternatives(hint) else "")


def _describe_arm(arm: Any) -> str:
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    origin, inner = get_origin(arm) or arm, get_args(arm)
    if arm in simple:
        return simple[arm]
    if origin is Literal:
        return "one of " + ", ".join(repr(c) for c in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} values ({', '.join(describe_type(i) for i in inner)})"
    if origin in (tuple, list, Sequence):
        return f"a list, each item {describe_type(inner[0])}"
    return "a table"


def _shown(value: Any) -> str:
    text = f"the text {value!r}" if isinstance(value, str) else repr(value)
    text = {"True": "true", "False": "false"}.get(text, text)
    return text if len(text) <= 80 else text[:77] + "…"


# ---------------------------------------------------------------------------------------------- dataclass → TOML


def leaves(cls: Any, instance: Any = ABSENT, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, type, value) of every field that is not a dataclass; the value is ABSENT without an instance."""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        value = getattr(instance, field.name, ABSENT) if instance is not ABSENT else ABSENT
        struct: Any = type(value) if dataclasses.is_dataclass(value) else None
        struct = struct or next((a for a in alternatives(hints[field.name]) if dataclasses.is_dataclass(a)), None)
        if struct is None:
            yield f"{prefix}{field.name}", hints[field.name], value
        else:
            yield from leaves(struct, value if isinstance(value, struct) else ABSENT, f"{prefix}{field.name}.")


def to_tree(instance: Any, base: Any = ABSENT) -> dict[str, Any]:
    """The tree as plain TOML values. `None` is left out where leaving it out reads back as `None`."""
    tree: dict[str, Any] = {}
    hints = get_type_hints(type(instance), include_extras=True)
    for field in dataclasses.fields(instance):
        if not field.init:
            continue
        default = getattr(base, field.name) if base is not ABSENT else _default(field)
        value = getattr(instance, field.name)
        if value is None and default is None:
            continue
        if (
            isinstance(value, str | Path)
            and str(value) == NONE_TEXT
            and types.NoneType in alternatives(hints[field.name])
        ):
            raise ConfigError(f"`{field.name}` holds the text 'None', which cannot be told from no value in a recipe.")
        tree[field.name] = _plain(value, default, field.name)
    return tree


def _plain(value: Any, default: Any, name: str) -> Any:
    if value is None:
        return NONE_TEXT
    if dataclasses.is_dataclass(value):
        return to_tree(value, default if type(default) is type(value) else ABSENT)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, ABSENT, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, ABSENT, name) for v in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"`{name}` holds {value!r}, which a recipe cannot say.")
    return value


def to_toml(instance: Any) -> str:
    """The whole tree as TOML text that `load` reads back equal."""
    return "\n".join(_tables(to_tree(instance), "")).strip("\n") + "\n"


def _tables(tree: Mapping[str, Any], header: str) -> Iterator[str]:
    plain = {k: v for k, v in tree.items() if not isinstance(v, Mapping)}
    tables = {k: v for k, v in tree.items() if isinstance(v, Mapping)}
    if header and (plain or not tables):
        yield f"\n[{header}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_toml(value)}"
    for key, value in tables.items():
        yield from _tables(value, f"{header}.{_key(key)}" if header else _key(key))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ConfigError(f"The text {value!r} is not Unicode (a lone surrogate), so a recipe cannot hold it.")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)
