"""Writing several files that belong together into a folder that may hold others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openbook.files import explain_os_error, sync_file, sync_folder

STALE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success its files move into `folder` and weights of an earlier save go away.

    On any error `folder` keeps what it had. config.json moves last: a folder without one is not yet a model.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    except OSError as error:
        raise explain_os_error(error, folder, "write to") from error
    try:
        yield part
        files = (str(path.relative_to(part)) for path in part.rglob("*") if path.is_file())
        names = sorted(files, key=lambda name: name == "config.json")
        for name in names:
            os.chmod(part / name, 0o644)
            sync_file(part / name)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(part / name, folder / name)
        for pattern in STALE if any(name.endswith(".safetensors") for name in names) else ():
            for path in folder.glob(pattern):
                if path.name not in names:
                    path.unlink()
        sync_folder(folder)
    except OSError as error:
        raise explain_os_error(error, folder, "write to") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
