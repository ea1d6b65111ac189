"""Files that must survive: written whole or not at all.

`write_atomic` and `atomic_folder` write beside the target, flush to the disk, and rename; a reader, a crash or a full
disk never sees half of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openbook.errors import ConfigError, OpenbookError


def explain_os_error(error: OSError, path: Path, doing: str) -> OpenbookError:
    """Turn an operating-system error into a message that says what to do about it."""
    denied = "leave it out" if doing == "read" else "choose a folder you may write to with --out"
    what_to_do = {
        errno.ENOSPC: "The disk is full: free space there or choose another folder with --out.",
        errno.EDQUOT: "The disk quota is used up: free space there or choose another folder with --out.",
        errno.EROFS: "The file system is read-only: choose another folder with --out.",
        errno.EACCES: f"Permission denied: {denied}, or change its permissions.",
        errno.ENOTDIR: "A part of this path is a file, not a folder: choose another --out.",
        errno.ENOENT: "A part of this path does not exist.",
    }.get(_number(error), "Check the path and try again.")
    return OpenbookError(f"Cannot {doing} '{path}': {error.strerror or error}. {what_to_do}")


def _number(error: OSError) -> int:
    """The system's number of an error. numpy has none for an array of which the disk took only a part."""
    full = error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error))
    return errno.ENOSPC if full else error.errno or 0


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Flush one written file to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write `content` to `path` so that `path` holds the old or the new content whole, never a part. `mode`: who may
    read it."""
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
        sync_folder(path.parent)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise explain_os_error(error, path, "write") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on any error it disappears.

    An existing `path` is moved aside first and deleted last, so that at every moment one whole version exists.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
    old = part.with_suffix(".old")
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                sync_file(file)
        os.chmod(part, 0o755)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or damaged one is an error that names it and the place of the damage."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"'{path}' is not UTF-8 text (byte {error.start}): it is damaged or not a JSON file."
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"'{path}' is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "It may be half written by an interrupted copy: fetch it again."
        ) from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' nests too deeply to be a configuration.") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
