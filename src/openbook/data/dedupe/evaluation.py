"""Evaluation files → items, each with its texts: what must not stand in a training set.

    .jsonl .ndjson   a record is an item            .json   an item for each record of the (longest) list in it
    .csv .tsv        a row is an item               others  the whole file is one item          (.gz of each)

The texts of an item are the strings of a record, at every depth, or those under the fields that are chosen; each is
compared by itself (see `Item.passages`). A folder stands for all its files of these names and `.txt`, each a set.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook.data.dedupe.words import units
from openbook.errors import DataError, nearest
from openbook.files import explain_os_error

LARGEST = 1 << 30  # bytes of a file, unpacked
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")  # of files in folders


@dataclass(frozen=True, slots=True)
class Item:
    """One question, passage or problem."""

    set: str  # the set it is of
    number: int  # the record in its file, counted from 1
    texts: tuple[str, ...]

    def passages(self, shortest: int) -> list[str]:
        """What is looked for: its texts of at least so many words; or else its first text with each other behind it.

        (The question is too short to be known by, but not the question and its answer.)
        """
        whole = [text for text in self.texts if len(units(text)) >= shortest]
        joined = [f"{self.texts[0]}\n{text}" for text in self.texts[1:]]
        return whole or [text for text in joined if len(units(text)) >= shortest]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One file of an evaluation set."""

    name: str
    path: Path

    def items(self, fields: Sequence[str] = ()) -> Iterator[Item]:
        """Its items. Raises `DataError` for a file that cannot be read, or that has none of `fields` anywhere."""
        seen: set[str] = set()
        found = False
        for number, record in enumerate(_records(self.path), 1):
            texts = tuple(text for text in _texts(record, fields, seen) if text.strip())
            found |= bool(texts)
            yield Item(self.name, number, texts)
        if not found:
            hint = f" in the fields {', '.join(fields)}.{nearest(fields[0], seen)}" if fields else "."
            raise DataError(f"'{self.path}' has no text to compare with{hint}")


def evaluations(paths: Sequence[str | Path]) -> list[Evaluation]:
    """The evaluation files under `paths` (files and folders); a set's name is its path inside, without the suffix."""
    found: list[Evaluation] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = [path for path in sorted(given.rglob("*")) if _is_set(path, given)]
            if not inside:
                raise DataError(f"No {', '.join(SUFFIXES)} file (or .gz of one) under '{given}'.")
            found += [Evaluation(_bare(path.relative_to(given)), path) for path in inside]
        elif given.exists():
            found.append(Evaluation(_bare(Path(given.name)), given))
        else:
            raise DataError(f"There is no evaluation file or folder '{given}'.")
    if not found:
        raise DataError("No evaluation file was named: give .jsonl, .json, .csv or .txt files, or a folder of them.")
    return found


def _is_set(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.name.lower().removesuffix(".gz").endswith(SUFFIXES) and path.is_file()


def _bare(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return (path.parent / (Path(name).stem or name)).as_posix()


def _records(path: Path) -> Iterator[Any]:
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    content = _read(path)
    if kind in (".jsonl", ".ndjson"):
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield _json(line, path, f", line {number}")
    elif kind == ".json":
        yield from _longest(_json(content, path, ""))
    elif kind in (".csv", ".tsv"):
        try:
            yield from csv.reader(io.StringIO(content), delimiter="\t" if kind == ".tsv" else ",")
        except csv.Error as error:
            raise DataError(f"'{path}' is not a table of the {kind} kind: {error}.") from error
    else:
        yield content


def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"'{path}' is not a whole gzip file ({error}): fetch it again.") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if len(data) > LARGEST:
        raise DataError(
            f"'{path}' has more than {LARGEST >> 20} MiB: no evaluation set is that large. Cut it in parts."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start}). Leave it out or convert it.") from error


def _json(content: str, path: Path, where: str) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"'{path}'{where}: not JSON ({error}).") from error


def _longest(value: Any) -> list[Any]:
    """The records of a JSON file: itself if it is a list, else the longest list directly in it, else itself alone."""
    if isinstance(value, list):
        return value
    inside = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else []
    records = max(inside, key=len, default=[])
    return records if records and not isinstance(records[0], str) else [value]


def _texts(record: Any, fields: Sequence[str], seen: set[str]) -> Iterator[str]:
    """The strings of a record in order, without recursion: what is nested deeply is no reason to fail."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            seen.update(value)
            chosen = [part for key, part in value.items() if not fields or key in fields or isinstance(part, dict)]
            waiting += reversed(chosen)
