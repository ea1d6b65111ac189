"""Paths, folders and patterns → the files to read, each once, in a fixed order.

Folders are walked through links too, each folder once, so that a loop of links ends. A file that is reached twice (by
another name, a link, a hard link) is read once, under the first name.
"""

from __future__ import annotations

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
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in files if not file.is_dir()]
        if files:
            return files
        raise DataError(f"No file matches '{path}'.")
    if path.exists() or path.is_symlink():
        what = "a link that leads nowhere" if path.is_symlink() else "neither a file nor a folder"
        raise DataError(f"'{path}' is {what}.")
    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    raise DataError(f"There is no '{path}'.{nearest(path.name, beside) if beside else ''}")


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
    seen: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        place = Path(error.filename or folder)
        if bad is None or place == folder:
            raise explain_os_error(error, place, "read") from error
        bad(Bad(place, "unreadable", f"cannot be read: {error.strerror or error}."))

    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        inside = []
        for name in sorted(folders):
            try:
                status = os.stat(os.path.join(place, name))
            except OSError as error:
                failed(error)
                continue
            if not name.startswith(".") and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                inside.append(name)
        folders[:] = inside
        yield from (Path(place, name) for name in names if not name.startswith("."))
