"""What a run writes down while it goes: a JSON line for each step, held-out measurement and sample; also TensorBoard.

The file is part of the run's exactness: a checkpoint knows its length, and a resumed run cuts it back to that length,
so that every step stands in it once.

    {"kind": "step", "step": 12, "loss": 5.1, "nll": 5.1, "lr": 0.0006, "norm": 1.3, "tokens": 49152, "took": 0.8, …}
    with experts also "experts": {"least": 0.7, "most": 1.6, "entropy": 0.98, "dropped": 0.0}: see experts.py
    {"kind": "heldout", "step": 100, "loss": 4.2, "perplexity_per_token": 66.7, "perplexity_per_byte": 3.7,
     "bits_per_byte": 1.9}
    {"kind": "sample", "step": 100, "text": "Once upon a time …"}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from openbook.errors import CheckpointError, MissingExtra
from openbook.files import explain_os_error
from openbook.log import caution

Record = Mapping[str, Any]


class Watcher(Protocol):
    """Whoever wants to know how the run goes."""

    def record(self, record: Record) -> None:
        """Something happened; `record["kind"]` says what: step, heldout or sample."""
        ...

    def close(self) -> None:
        """The run ends, for whatever reason."""
        ...


class Journal:
    """The JSONL file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = path.open("ab")
        except OSError as error:
            raise explain_os_error(error, path, "write") from error

    def record(self, record: Record) -> None:
        """Append one line."""
        try:
            self.file.write(json.dumps(_plain(record), ensure_ascii=False).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise explain_os_error(error, self.path, "write") from error

    def position(self) -> int:
        """The length in bytes, all of it on the disk."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            return os.fstat(self.file.fileno()).st_size
        except OSError as error:
            raise explain_os_error(error, self.path, "write") from error

    def rewind(self, position: int) -> None:
        """Forget all that was written after `position`."""
        there = os.fstat(self.file.fileno()).st_size
        if there < position:
            caution(
                f"'{self.path}' is shorter than when the checkpoint was made: its beginning is lost, the run goes on."
            )
            return
        self.file.truncate(position)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All records of a journal; a last line that a kill cut short is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(f"'{path}' is damaged at line {number}.") from error
    return records


class TensorBoard:
    """The same numbers as TensorBoard events in `folder` (extra `tensorboard`)."""

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard", "`metrics.tensorboard`") from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def record(self, record: Record) -> None:
        """Every number of the record as `kind/name`."""
        kind, step = record["kind"], record["step"]
        for name, value in record.items():
            if isinstance(value, Mapping):
                for layer, number in value.items():
                    self.writer.add_scalar(f"{name}/{layer}", number, step)
            elif isinstance(value, str):
                if name == "text":
                    self.writer.add_text("sample", value, step)
            elif name != "step":
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write out what is pending."""
        self.writer.close()
