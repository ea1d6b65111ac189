"""The command line of a dataclass: `--data.block 512`, `--json`, a positional folder; parsed and explained by tyro.

What this adds to tyro: an unknown option names the nearest one in one line, booleans also take a value
(`--compile false`), the entries of a dict are options of their own (`--data.mix.stories 0.7`), and every complaint is a
UsageError.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from tyro.conf import Positional as Positional
from tyro.conf import UseAppendAction as Repeated
from tyro.conf import arg as option

from openbook.config import NONE_TEXT, alternatives, bare, from_tree, leaves
from openbook.errors import UsageError

T = TypeVar("T")

_POSITIONAL = get_args(Positional[str])[1]
_MISSING = tyro.MISSING_NONPROP
_RECIPE_STYLE = (tyro.conf.AvoidSubcommands,)
_VERB_STYLE = (
    *_RECIPE_STYLE,
    tyro.conf.DisallowNone,
    tyro.conf.PositionalMetavarFromFieldName,
    tyro.conf.FlagCreatePairsOff,
)

__all__ = ["Positional", "Repeated", "option", "option_names", "parse"]


def parse(
    cls: type[T],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    tree: Mapping[str, Any] | None = None,
    source: str = "the defaults",
) -> T:
    """An instance of the dataclass `cls` from command-line words, over the values that `tree` (a recipe) gives.

    Errors: UsageError for the words, ConfigError for the tree. `--help` prints the page and leaves with SystemExit(0).
    """
    known = {
        dotted: _Known(hint, value)
        for dotted, hint, value in leaves(cls, from_tree(cls, tree or {}, source=source, raw=_MISSING))
    }
    words, entries = _prepare(list(args), known, prog, pairs=tree is not None)
    base = from_tree(cls, _merged(tree or {}, entries), source=source, raw=_MISSING)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                cls,
                prog=prog,
                description=description,
                args=words,
                default=base,
                config=_RECIPE_STYLE if tree is not None else _VERB_STYLE,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_unboxed(errors.getvalue())} See: {prog} --help") from None


def option_names(cls: type) -> list[str]:
    """The options of a dataclass as they are typed: `--data.block`, `--json`, and `--no-cached` where it is on."""
    names = []
    for dotted, hint, value in leaves(cls, from_tree(cls, {}, source="the defaults", raw=_MISSING)):
        positional = get_origin(hint) is Annotated and _POSITIONAL in hint.__metadata__
        if not positional:
            names.append(_flag(dotted, not (value is True and bool in alternatives(hint))).replace("_", "-"))
    return names


@dataclass(frozen=True)
class _Known:
    """What is known of an option: its type, and the value it has if it is not given."""

    hint: Any
    value: Any


@dataclass(frozen=True)
class _Word:
    """One option as typed: `--data.block=512` is (`data.block`, `512`)."""

    name: str
    value: str | None


def _option(word: str) -> _Word | None:
    found = re.match(r"--([A-Za-z][\w.-]*)(?:=(.*))?\Z", word, re.DOTALL)
    return _Word(found[1], found[2]) if found else None


def _prepare(
    args: list[str], known: Mapping[str, _Known], prog: str, *, pairs: bool
) -> tuple[list[str], dict[str, Any]]:
    """The words for tyro, and the dict entries (place → value) taken out of them.

    A boolean is said to tyro as a flag: with `pairs` always, without only where it changes the value.
    """
    names = {dotted.replace("_", "-"): dotted for dotted in known}
    words: list[str] = []
    entries: dict[str, Any] = {}
    waiting = list(reversed(args))
    while waiting:
        word = waiting.pop()
        found = _option(word)
        if found is None:
            words.append(word)
            continue
        table, key = _dict_entry(found.name, known)
        if table is not None:
            value = found.value if found.value is not None else (waiting.pop() if waiting else None)
            if value is None:
                raise UsageError(f"--{found.name} needs a value.")
            entries[f"{table}\0{key}"] = _entry(value, known[table].hint)
            continue
        dotted, positive = _boolean(found.name, names, known)
        if dotted is None:
            _refuse_unknown(found.name, names, prog)
            words.append(word)
            continue
        on = _truth(found, waiting) == positive
        if pairs or on != known[dotted].value:
            words.append(_flag(dotted, on))
    return words, entries


def _boolean(name: str, names: Mapping[str, str], known: Mapping[str, _Known]) -> tuple[str | None, bool]:
    """The boolean option that `name` sets, and whether it is named itself (True) or as `no-…` (False)."""
    spelled = name.replace("_", "-")
    parent, dot, last = spelled.rpartition(".")
    for dotted, positive in (
        (names.get(spelled), True),
        (names.get(f"{parent}{dot}{last.removeprefix('no-')}"), False),
    ):
        if dotted is not None and bool in alternatives(known[dotted].hint):
            return dotted, positive
    return None, True


def _truth(found: _Word, waiting: list[str]) -> bool:
    """The truth value after a boolean option, taken from the words that wait if it stands there; else true."""
    if found.value is None:
        given = waiting.pop().lower() if waiting and waiting[-1].lower() in ("true", "false") else "true"
    else:
        given = found.value.lower()
    if given not in ("true", "false"):
        raise UsageError(f"--{found.name} is true or false: got '{found.value}'.")
    return given == "true"


def _flag(dotted: str, on: bool) -> str:
    parent, dot, name = dotted.rpartition(".")
    return f"--{parent}{dot}{'' if on else 'no-'}{name}"


def _dict_entry(name: str, known: Mapping[str, _Known]) -> tuple[str | None, str]:
    for dotted, option_ in known.items():
        prefix = dotted + "."
        if any((get_origin(a) or a) in (dict, Mapping) for a in alternatives(option_.hint)):
            for spelled in (prefix, prefix.replace("_", "-")):
                if name.startswith(spelled) and len(name) > len(spelled):
                    return dotted, name[len(spelled) :]
    return None, ""


def _entry(text: str, hint: Any) -> Any:
    """A dict entry's value from its text: as its type says, else as TOML would read it."""
    arm = next(a for a in alternatives(hint) if a is not types.NoneType)
    inner = bare(get_args(arm)[1]) if len(get_args(arm)) == 2 else Any
    if inner is str or text == NONE_TEXT:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text


def _merged(tree: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the dict entries put in their places; `tree` itself is left as it is."""
    merged: dict[str, Any] = dict(tree)
    for place, value in entries.items():
        dotted, _, key = place.partition("\0")
        at = merged
        for part in dotted.split("."):
            at[part] = dict(at.get(part, {}))
            at = at[part]
        at[key] = value
    return merged


def _refuse_unknown(name: str, names: Mapping[str, str], prog: str) -> None:
    spelled = name.replace("_", "-")
    if spelled not in names and spelled != "help":
        raise UsageError(f"Unknown option '--{name}' of {prog}.{_nearest_option(spelled, names)}")


def _nearest_option(name: str, names: Mapping[str, str]) -> str:
    last = name.rpartition(".")[2]
    close = [n for n in names if n.rpartition(".")[2] == last]
    if not close:
        ratios = {n: _likeness(name, n) for n in names}
        best = max(ratios.values(), default=0.0)
        close = [n for n in sorted(ratios, key=lambda n: -ratios[n]) if ratios[n] >= max(0.6, best - 0.1)]
    if not close:
        return f" See: {_listing(names)}"
    return " Did you mean " + " or ".join(f"--{c}" for c in close[:3]) + "?"


def _likeness(name: str, known: str) -> float:
    """How alike two options are, from 0 to 1: as a whole, or by their last part alone, which people leave bare."""
    bare_ = difflib.SequenceMatcher(None, name.rpartition(".")[2], known.rpartition(".")[2]).ratio()
    return max(difflib.SequenceMatcher(None, name, known).ratio(), bare_ if "." not in name else 0.0)


def _listing(names: Mapping[str, str]) -> str:
    shown = [f"--{n}" for n in sorted(names)]
    return ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "")


def _unboxed(text: str) -> str:
    """tyro's framed complaint as one line: the first paragraph inside the frame, without the frame."""
    lines = list(_framed(text))
    return re.sub(r"\s+", " ", " ".join(lines)).strip().rstrip(".") + "." if lines else text.strip()


def _framed(text: str) -> Iterator[str]:
    started = False
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        inside = re.match(r"\s*[│|]\s?(.*?)\s*[│|]\s*$", line)
        if inside is None:
            continue
        content = inside[1].strip()
        if not content.strip("─-"):
            if started:
                return
            continue
        started = True
        yield content
