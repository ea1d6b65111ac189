"""`openbook key FILE NAME`: makes an API key. It is printed once; the file holds its hash alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook import log
from openbook.errors import ConfigError, UsageError
from openbook.files import explain_os_error, write_atomic
from openbook.options import Positional, Repeated, parse

PRIVATE = 0o600


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make an API key for `openbook serve --api-keys FILE`, and print it.

    It cannot be shown again: FILE, which is made where it is not there, gets its hash. A running server reads FILE anew
    by itself. To take a key away, take its lines out of FILE.
    """

    file: Positional[Path]
    """Of the keys."""
    name: Positional[str]
    """Whose key it is: letters, digits, `_`, `.` and `-`."""
    admin: bool = False
    """It sees and stops everybody's requests."""
    requests_per_minute: float | None = None
    """More are answered 429."""
    tokens_per_minute: float | None = None
    """Read and written."""
    concurrent: int | None = None
    """Requests at work at once."""
    priority: int = 0
    """The highest that it may ask for."""
    model: Repeated[tuple[str, ...]] = ()
    """A model that it may use; all unless one is named."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.serve.keys import new_key, parse_keys

    try:
        before = config.file.read_text(encoding="utf-8") if config.file.exists() else ""
    except OSError as error:
        raise explain_os_error(error, config.file, "read") from error
    if config.name in parse_keys(before, str(config.file)).by_name:
        raise UsageError(
            f"'{config.file}' has a key of that name: '{config.name}'. Give another, or take its lines out first."
        )
    key, digest = new_key()
    after = f"{before.rstrip()}\n\n{lines_of(config, digest)}".lstrip()
    try:
        parse_keys(after, str(config.file))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    write_atomic(config.file, after, mode=PRIVATE)
    log.note(f"The key of '{config.name}', which is shown only now; '{config.file}' holds its hash:")
    print(key)
    return 0


def lines_of(config: Config, digest: str) -> str:
    """Its table in the file."""
    values: dict[str, object] = {"hash": digest}
    if config.admin:
        values["admin"] = True
    for name, value in (
        ("requests_per_minute", config.requests_per_minute),
        ("tokens_per_minute", config.tokens_per_minute),
        ("concurrent", config.concurrent),
        ("priority", config.priority or None),
        ("models", list(config.model) or None),
    ):
        if value is not None:
            values[name] = value
    name = config.name if re.fullmatch(r"[A-Za-z0-9_-]+", config.name) else json.dumps(config.name, ensure_ascii=False)
    return "\n".join([f"[keys.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"
