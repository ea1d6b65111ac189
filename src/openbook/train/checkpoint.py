"""Checkpoints of a run: complete or absent, never pickle, exact.

    checkpoints/
      step-0000000120/    model.safetensors  optimizer.safetensors  state.json       the newest `keep` of them best/
      model.safetensors  state.json                              the weights with the best held-out loss

`state.json` holds everything else the next step depends on (step, row position, random states, what the guard and
early stopping know, the place in the metrics file), what the run is (`identity`), and the size and checksum of each
file; its own checksum stands in it too. A folder appears under its name only when all of it is on the disk. Reading
takes the newest that is whole, says loudly when that is not the last, and refuses a checkpoint of another run by
naming the difference.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import random
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openbook.errors import CheckpointError, ConfigError, OpenbookError
from openbook.files import atomic_folder, explain_os_error, read_json, sync_file
from openbook.log import caution

FORMAT = 1
WEIGHTS, MOMENTS, RECORD = "model.safetensors", "optimizer.safetensors", "state.json"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often: every `every` seconds, or so that saving takes at most `overhead` of the time, whichever is longer."""

    every: float = 30.0
    overhead: float = 0.05
    keep: int = 2  # newest checkpoints on the disk; the one before is what a damaged one falls back to
    best: bool = True  # also the weights with the best held-out loss

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ConfigError(f"`checkpoint.every` is in seconds and must be 0 or more: got {self.every}.")
        if not 0 < self.overhead <= 1:
            raise ConfigError(f"`checkpoint.overhead` is a share of the time, above 0 to 1: got {self.overhead}.")
        if self.keep < 1:
            raise ConfigError(f"`checkpoint.keep` must be 1 or more: got {self.keep}.")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint holds: tensors by name, and everything else as plain JSON values."""

    model: Tensors
    optimizer: Tensors
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in `folder`; `identity` is what a checkpoint of this run has in common with it."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], cadence: Cadence | None = None) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))  # as it reads back
        self.cadence = cadence or Cadence()
        self.saved_at = time.monotonic()
        self.cost = 0.0  # seconds that the last save took
        self.last: Path | None = None

    def due(self) -> bool:
        """Whether it is time to save again."""
        wait = max(self.cadence.every, self.cost / self.cadence.overhead)
        return time.monotonic() - self.saved_at >= wait

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint for `snapshot.record["step"]`, whole or not at all, and drop the oldest."""
        began = time.monotonic()
        path = self.folder / f"step-{snapshot.record['step']:010d}"
        self._write(path, {WEIGHTS: snapshot.model, MOMENTS: snapshot.optimizer}, snapshot.record)
        self.last = path
        for old in self._all()[self.cadence.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began
        return path

    def save_best(self, model: Tensors, record: Mapping[str, Any]) -> None:
        """Write the weights as the best so far."""
        self._write(self.folder / "best", {WEIGHTS: model}, record)

    def latest(self) -> Snapshot | None:
        """The newest whole checkpoint; None if there is none at all.

        Errors: CheckpointError if it belongs to another run, or if there are checkpoints and all of them are damaged.
        """
        remove_leftovers(self.folder)
        damaged: dict[Path, str] = {}
        for path in self._all():
            try:
                content = _read_record(path)
                tensors = {name: read_tensors(path / name) for name in (WEIGHTS, MOMENTS)}
            except (OpenbookError, OSError) as error:
                damaged[path] = str(error)
                caution(f"{error} Falling back to the checkpoint before it.")
                continue
            self._require_same(content, path)
            for other in damaged:
                caution(f"Resuming from '{path}'; the damaged '{other.name}' is removed.")
                shutil.rmtree(other, ignore_errors=True)
            self.last = path
            return Snapshot(model=tensors[WEIGHTS], optimizer=tensors[MOMENTS], record=content["run"])
        if damaged:
            first = next(iter(damaged.values()))
            raise CheckpointError(
                f"None of the {len(damaged)} checkpoints in '{self.folder}' can be read: {first} "
                "Delete that folder to start over, or give another --out."
            )
        return None

    def best(self) -> Tensors | None:
        """The weights with the best held-out loss, if they were kept and are whole."""
        path = self.folder / "best"
        if not path.is_dir():
            return None
        self._require_same(_read_record(path), path)
        return read_tensors(path / WEIGHTS)

    def _all(self) -> list[Path]:
        """All checkpoint folders, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{10}", p.name)), reverse=True)

    def _write(self, path: Path, parts: Mapping[str, Tensors], record: Mapping[str, Any]) -> None:
        try:
            with atomic_folder(path) as part:
                files = {}
                for name, tensors in parts.items():
                    write_tensors(part / name, tensors)
                    files[name] = {"bytes": (part / name).stat().st_size, "crc32": _checksum(part / name)}
                content = {"format": FORMAT, "identity": self.identity, "files": files, "run": dict(record)}
                content["checksum"] = zlib.crc32(_canonical(content))
                (part / RECORD).write_text(json.dumps(content), encoding="utf-8")
        except OpenbookError as error:
            kept = f"The one before it, '{self.last}', is whole; the same command continues from there."
            raise CheckpointError(f"{error} {kept if self.last else 'No checkpoint was saved before.'}") from error

    def _require_same(self, content: Mapping[str, Any], path: Path) -> None:
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"The checkpoint '{path}' has format {content['format']}; this version of openbook reads {FORMAT}. "
                "Continue it with the version that wrote it, or give another --out."
            )
        different = differences(content["identity"], self.identity)
        if different:
            shown = "; ".join(different[:6]) + (f"; and {len(different) - 6} more" if len(different) > 6 else "")
            raise CheckpointError(
                f"'{path}' is a checkpoint of another run: {shown}. Give the same settings to continue it, "
                f"another --out to start a new run, or delete '{self.folder}'."
            )


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Where two trees of plain values differ, as `dotted.name: was 1, now 2`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(before) + [key for key in now if key not in before]
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if before == now else [f"`{name}` was {json.dumps(before)}, now {json.dumps(now)}"]


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True).encode()


def _read_record(path: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint whose every file is whole; CheckpointError otherwise."""
    if not (path / RECORD).is_file():
        raise CheckpointError(f"The checkpoint '{path}' is incomplete: it has no {RECORD}.")
    try:
        content = read_json(path / RECORD)
    except OpenbookError as error:
        raise CheckpointError(f"The checkpoint '{path}' is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("checksum") != zlib.crc32(_canonical(content)):
        raise CheckpointError(f"The checkpoint '{path}' is damaged: {RECORD} does not match its checksum.")
    for name, facts in content["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"The checkpoint '{path}' is incomplete: it has no {name}.")
        if file.stat().st_size != facts["bytes"]:
            raise CheckpointError(
                f"The checkpoint '{path}' is damaged: {name} has {file.stat().st_size} of {facts['bytes']} bytes."
            )
        if _checksum(file) != facts["crc32"]:
            raise CheckpointError(f"The checkpoint '{path}' is damaged: {name} does not match its checksum.")
    return content


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            value = zlib.crc32(chunk, value)
    return value


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write named tensors as safetensors and flush them. Errors: OSError, also for a full disk."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error
    sync_file(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}.") from error


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@torch.no_grad()
def put_weights(model: nn.Module, weights: Tensors) -> None:
    """Copy `weights`, as `weights_of` gave them, into the model."""
    targets = weights_of(model)
    if sorted(targets) != sorted(weights):
        odd = sorted(set(targets) ^ set(weights))
        raise CheckpointError(f"The checkpoint holds the weights of another model: '{odd[0]}' is only in one of them.")
    for name, target in targets.items():
        if target.shape != weights[name].shape:
            raise CheckpointError(
                f"The checkpoint's '{name}' is {list(weights[name].shape)}; the model's is {list(target.shape)}."
            )
        target.copy_(weights[name])


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written beside the checkpoints; put back what it had moved aside."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        left = re.fullmatch(r"\.(step-\d{10}|best)\..*\.(part|old)", path.name)
        if left and left[2] == "old" and not (folder / left[1]).exists():
            os.replace(path, folder / left[1])
        elif left:
            shutil.rmtree(path, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """The random states of Python, numpy and torch (each device), as plain JSON values."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    devices = [_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), place, has_gauss, cached],
        "torch": _text(torch.get_rng_state()),
        "cuda": devices,
    }


def seed_everything(seed: int) -> None:
    """Start the random states of Python, numpy and torch at `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put the random states back that `random_states` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    torch.set_rng_state(_tensor(states["torch"]))
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_tensor(text) for text in states["cuda"]])


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a second run there is an error instead of two runs that overwrite each other."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise explain_os_error(error, folder, "write") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OpenbookError(
                f"Another run is writing into '{folder}'. Wait for it, or give another --out."
            ) from error
        yield
    finally:
        os.close(handle)


def require_space(folder: Path, model: nn.Module, cadence: Cadence) -> None:
    """An error now if the checkpoints of this model will not fit on the disk later."""
    weights = sum(t.numel() * t.element_size() for t in weights_of(model).values())
    needed = weights * 3 * (cadence.keep + 1) + weights * (
        2 * cadence.best + 1
    )  # weights and two moments, one in the making
    held = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    if free + held < needed:
        raise OpenbookError(
            f"Not enough space for the checkpoints in '{folder}': they take up to {needed / 1e6:,.1f} MB and "
            f"{free / 1e6:,.1f} MB are free. Free some, give another --out, or lower `checkpoint.keep`."
        )
