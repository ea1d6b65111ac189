"""What the stages of a corpus leave for each other: documents as JSON lines, and one file of arrays beside them.

Everything is written beside its name and renamed, the ledger last: a part whose ledger is there is done.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from openbook.data.corpus.tally import Ledger
from openbook.data.documents import Document
from openbook.errors import DataError
from openbook.files import explain_os_error, read_json, write_atomic

INDENT = 1


class Lines:
    """JSON lines written as they come, under a name that is theirs only after `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._part.open("wb")
        except OSError as error:
            raise explain_os_error(error, path, "write") from error

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        else:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def add(self, record: Mapping[str, Any]) -> None:
        """One more record."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise explain_os_error(error, self.path, "write") from error

    def _close(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())  # before the ledger says that it is there
            self._file.close()
            self._part.replace(self.path)
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise explain_os_error(error, self.path, "write") from error


def record_of(document: Document, source: str) -> dict[str, Any]:
    """A document of the corpus as it stands in a file: its text, where it came from, what else is known of it."""
    place = {"source": source, "file": str(document.path), "line": document.line, "at": document.at}
    return {"text": document.text, **place, "meta": dict(document.meta)}


def read_records(path: Path) -> Iterator[Document]:
    """The documents that `Lines` wrote."""
    try:
        with path.open("rb") as file:
            for line in file:
                value = json.loads(line)
                yield Document(value["text"], Path(value["file"]), value["line"], 0, value["meta"], value["at"])
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' is damaged ({error}): remove its folder and prepare again.") from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Named arrays as one file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The inverse of `write_arrays`."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except ValueError as error:
        raise DataError(f"'{path}' is damaged ({error}): remove its folder and prepare again.") from error


def write_ledger(path: Path, ledger: Ledger, more: Mapping[str, Any] | None = None) -> None:
    """A part is done: what its steps did, and what else there is to say of it."""
    write_atomic(path, json.dumps({"ledger": ledger.to_tree(), **(more or {})}, ensure_ascii=False, indent=INDENT))


def read_ledger(path: Path) -> tuple[Ledger, dict[str, Any]]:
    """The inverse of `write_ledger`."""
    tree = read_json(path)
    return Ledger.from_tree(tree.pop("ledger")), tree
