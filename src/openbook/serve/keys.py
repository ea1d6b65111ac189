"""API keys: a file of hashes, each with what its holder may do.

    [keys.alice]
    hash = "sha256:9f86…"            # of the key; `openbook key FILE alice` makes both
    admin = true                     # sees and stops everybody's requests
    requests_per_minute = 60
    tokens_per_minute = 100_000      # read and written
    concurrent = 4                   # requests at work at once
    priority = 10                    # the highest that it may ask for; 0 unless it says
    models = ["tiny"]                # all unless it says

What a line does not say is without a limit. A key is 256 bits of chance, so that a plain hash keeps it: there is
nothing to guess, and nothing to slow down.
"""

from __future__ import annotations

import hmac
import math
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from openbook.errors import ConfigError, nearest
from openbook.files import explain_os_error

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HASH = re.compile(r"sha256:([0-9a-f]{64})")
OTHERS_READ = 0o004


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line of the file."""

    name: str
    hash: str
    admin: bool = False
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrent: int | None = None
    priority: int = 0
    models: tuple[str, ...] | None = None


def _number(value: object) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf
    return float(value) if fits else None  # type: ignore[arg-type]  # it was asked what it is


def _whole(least: int) -> Callable[[object], int | None]:
    return lambda value: value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None


def _names(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(one, str) and one for one in value) else None


def _hash(value: object) -> str | None:
    return value if isinstance(value, str) and HASH.fullmatch(value) else None


# How each field is read (None: it is not that), and what it must be.
FIELDS: Mapping[str, tuple[Callable[[object], Any], str]] = {
    "hash": (_hash, '"sha256:" and 64 hexadecimal digits'),
    "admin": (lambda value: value if isinstance(value, bool) else None, "true or false"),
    "requests_per_minute": (_number, "a number, at least 1"),
    "tokens_per_minute": (_number, "a number, at least 1"),
    "concurrent": (_whole(1), "a whole number, at least 1"),
    "priority": (_whole(0), "a whole number, at least 0"),
    "models": (_names, "a list of names"),
}
assert {one.name for one in fields(Key)} == {"name", *FIELDS}


class Keys:
    """All keys of a file, found by what a caller says."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.by_name = {key.name: key for key in keys}
        self._secret = secrets.token_bytes(32)
        self._by_mark = {self._mark(bytes.fromhex(key.hash.removeprefix("sha256:"))): key for key in keys}

    def find(self, said: str) -> Key | None:
        """Whose key it is. The time that this takes says nothing of what is there: what is looked up is a hash that
        nobody outside this process can make."""
        return self._by_mark.get(self._mark(sha256(said.encode()).digest()))

    def _mark(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")

    def __len__(self) -> int:
        return len(self.by_name)


def read_keys(path: Path) -> Keys:
    """The keys of a file; a `ConfigError` names the line that is wrong."""
    try:
        return parse_keys(path.read_bytes().decode(), str(path))
    except OSError as error:
        raise explain_os_error(error, path, "read the keys in") from error
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is not UTF-8 text: it is no file of keys.") from None


def parse_keys(text: str, where: str) -> Keys:
    """The keys of a file's text."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{where}' is no TOML: {error}.") from None
    if unknown := sorted(set(tree) - {"keys"}):
        raise ConfigError(f"'{where}' has `{unknown[0]}`; a file of keys has tables [keys.NAME] alone.")
    table = tree.get("keys", {})
    if not isinstance(table, dict):
        raise ConfigError(f"`keys` of '{where}' must be tables [keys.NAME]: got {table!r:.60}.")
    found = [_key(name, value, where) for name, value in table.items()]
    seen: dict[str, str] = {}
    for key in found:
        if key.hash in seen:
            raise ConfigError(f"'{where}': {seen[key.hash]!r} and {key.name!r} have the same key. Give each its own.")
        seen[key.hash] = key.name
    return Keys(found)


def _key(name: str, given: object, where: str) -> Key:
    place = f"[keys.{name[:70]}] of '{where}'"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{place}: a name is letters, digits, `_`, `.` and `-`, at most 64.")
    if not isinstance(given, dict):
        raise ConfigError(f"{place} must be a table: got {given!r:.60}.")
    values: dict[str, Any] = {}
    for field, value in given.items():
        if field not in FIELDS:
            raise ConfigError(f"{place} has an unknown field `{field}`.{nearest(field, FIELDS)}")
        read, allowed = FIELDS[field]
        values[field] = read(value)
        if values[field] is None:
            shown = "" if field == "hash" else f": got {value!r:.60}"  # it may be a key, by mistake
            raise ConfigError(f"`{field}` in {place} must be {allowed}{shown}.")
    if "hash" not in values:
        raise ConfigError(f"{place} has no `hash`. `openbook key FILE NAME` makes a key with its hash.")
    return Key(name=name, **values)


def new_key() -> tuple[str, str]:
    """A key, and its hash."""
    key = "ob-" + secrets.token_urlsafe(32)
    return key, "sha256:" + sha256(key.encode()).hexdigest()


class KeyFile:
    """A file of keys that is read anew whenever it changes; one that cannot be read leaves the keys as they were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._look()
        self.keys = read_keys(path)
        if not self.keys:
            raise ConfigError(f"'{path}' has no keys, so that nobody could come in. Make one: openbook key {path} NAME")

    @property
    def open(self) -> bool:
        """Whether every user of this machine can read it."""
        try:
            return bool(self.path.stat().st_mode & OTHERS_READ)
        except OSError:
            return False

    @property
    def changed(self) -> bool:
        """Whether it is another than the one that was read last."""
        return self._look() != self._seen

    def reload(self) -> None:
        """Reads it again. On an error the keys stay, and the same file is not tried again until it changes."""
        self._seen = self._look()
        self.keys = read_keys(self.path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
