"""Paths, folders and patterns → the files to read, each once, in a fixed order.

Folders are walked through links too, each folder once, so that a loop of links ends. A file that is reached twice (by
another name, a link, a hard link) is read once, under the first name.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from openbook.data.sources.document import Bad, Listing
from openbook.data.sources.kinds import FOLDER, in_folder
from openbook.data.sources.stream import tell
from openbook.data.sources.window import STANDARD_INPUT
from openbook.errors import DataError, nearest
from openbook.files import explain_os_error

Paths = str | Path | Iterable[str | Path]


def find_files(paths: Paths, *, bad: Listing | None = None, standard_input: bool = False) -> list[Path]:
    """The files that `paths` (a file, a folder, a pattern, or several) stand for, each once, in a fixed order.

    `bad` is told of what lies in a folder and cannot be read (a broken link, a pipe, a folder without permission) and,
    as a note, of files that are reached twice; without it the first are errors and the second warnings. A path that
    does not exist, or gives no file, is an error always. `-` is standard input, where `standard_input` allows it.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("No text was named: give a .txt or .jsonl file, or a folder of them.")
    found: dict[tuple[int, int] | Path, Path] = {}
    for path in map(Path, given):
        if path == STANDARD_INPUT:
            if not standard_input:
                raise DataError("'-', standard input, can be read only once, and here text is read again: name a file.")
            found[path] = path
            continue
        for file in _expand(path.expanduser(), bad):
            _add(found, file, bad)
    return list(found.values())


def _add(found: dict[tuple[int, int] | Path, Path], file: Path, bad: Listing | None) -> None:
    if (name := os.fsencode(file).decode("utf-8", "backslashreplace")) != str(file):
        _refuse(Bad(Path(name), "name not UTF-8", "its name is not UTF-8, so no report could say it: rename it."), bad)
        return
    status = _status(file, bad)
    if status is None:
        return
    if not stat.S_ISREG(status.st_mode):
        _refuse(Bad(file, "not a file", "it is neither a file nor a folder: a pipe, a socket or a device."), bad)
        return
    first = found.setdefault((status.st_dev, status.st_ino), file)
    if os.path.abspath(first) != os.path.abspath(file):
        tell(Bad(file, "the same file twice", f"it is the same file as '{first}'. It is read once.", note=True), bad)


def _status(file: Path, bad: Listing | None) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError as error:
        if file.is_symlink() and isinstance(error, FileNotFoundError):
            what = Bad(file, "broken link", f"it is a link to '{os.readlink(file)}', which does not exist.")
        else:
            what = Bad(file, "unreadable", f"cannot be read: {error.strerror or error}.")
        _refuse(what, bad)
        return None


def _refuse(what: Bad, bad: Listing | None) -> None:
    if bad is None:
        raise DataError(f"{what} Remove it, or name the files that are wanted.")
    bad(what)


def _expand(path: Path, bad: Listing | None) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return _in_folder(path, bad)
    if glob.has_magic(str(path)):
        files = [file for file in sorted(_matches(path, bad)) if not file.is_dir()]
        if files:
            return files
        raise DataError(f"No file matches '{path}'.")
    if path.exists() or path.is_symlink():
        what = "a link that leads nowhere" if path.is_symlink() else "neither a file nor a folder"
        raise DataError(f"'{path}' is {what}.")
    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    raise DataError(f"There is no '{path}'.{nearest(path.name, beside) if beside else ''}")


def _matches(pattern: Path, bad: Listing | None) -> list[Path]:
    """The paths that fit a pattern. Below `**` folders are walked, so that no loop of links is followed."""
    parts = pattern.parts
    if "**" not in parts:
        return [Path(name) for name in glob.glob(str(pattern))]
    at = parts.index("**")
    roots = [Path(name) for name in glob.glob(str(Path(*parts[:at])))] if at else [Path()]
    below = (file for root in roots if root.is_dir() for file in _walk(root, bad))
    return [file for file in below if _fits(file.parts[at:], parts[at:])]


def _fits(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path fit those of a pattern, in which `**` is any number of them."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _in_folder(folder: Path, bad: Listing | None) -> list[Path]:
    files: list[Path] = []
    others: set[str] = set()
    for file in _walk(folder, bad):
        if in_folder(file.name):
            files.append(file)
        else:
            others.add(file.suffix or file.name)
    if not files:
        seen = f" It has files of other kinds: {', '.join(sorted(others)[:8])}." if others else " It is empty."
        raise DataError(
            f"No {', '.join(FOLDER)} file (or .gz, .zst of one) under '{folder}'.{seen} "
            f"A file of another name is read when it is named itself, or by a pattern: '{folder / '**' / '*.json'}'."
        )
    return sorted(files)


def _walk(folder: Path, bad: Listing | None) -> Iterator[Path]:
    """All files under a folder, at every depth and through links, each folder once; hidden ones are passed over."""
    real = folder.resolve()
    seen = {_identity(place) for place in (real, *real.parents)}  # a link to where this lies is a loop

    def failed(error: OSError) -> None:
        place = Path(error.filename or folder)
        if bad is None or place == folder:
            raise explain_os_error(error, place, "read") from error
        bad(Bad(place, "unreadable", f"cannot be read: {error.strerror or error}."))

    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        inside = []
        for name in sorted(folders):
            try:
                identity = _identity(Path(place, name))
            except OSError as error:
                failed(error)
                continue
            if not name.startswith(".") and identity not in seen:
                seen.add(identity)
                inside.append(name)
        folders[:] = inside
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _identity(path: Path) -> tuple[int, int]:
    """What a file or folder is, by whatever name."""
    status = path.stat()
    return status.st_dev, status.st_ino
