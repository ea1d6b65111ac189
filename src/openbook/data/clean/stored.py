"""Small trained models on disk: one file of named arrays (.npz), never a pickle."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openbook.errors import DataError
from openbook.files import explain_os_error, write_atomic

Arrays = Mapping[str, npt.NDArray[Any]]
_KIND = "openbook"


def save_arrays(path: Path, kind: str, arrays: Arrays) -> None:
    """Write the arrays, and what kind of model they are, atomically."""
    stream = io.BytesIO()
    named: dict[str, Any] = {_KIND: np.array(kind), **arrays}
    np.savez_compressed(stream, **named)
    write_atomic(path, stream.getvalue())


def version(path: Path) -> tuple[int, int]:
    """What tells whether a file is still the one that was read. Of one that cannot be found: reading it will say so."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def load_arrays(path: Path, kind: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file of this kind. Raises DataError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise DataError(f"There is no model '{path}': train it first.") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, AttributeError) as error:
        raise DataError(f"'{path}' is not a stored model of {kind}, or it is damaged.") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    found = str(arrays.pop(_KIND, ""))
    if found != kind:
        raise DataError(f"'{path}' holds {f'a model of {found}' if found else 'other arrays'}, not one of {kind}.")
    return arrays
