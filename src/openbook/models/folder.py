"""Model folders: by path, or by name from the local Hugging Face cache, or the hub where there is a network.

Untrusted input: a name in an index cannot leave the folder, a damaged file is a clear error, nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openbook.errors import CheckpointError, ConfigError, MissingExtra
from openbook.files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECE = 8 * 2**20  # bytes read at once where a tensor must be copied
HUB_SECONDS = 10  # to wait for a first answer of the hub
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]


def resolve(name: str | Path, weights: bool = True) -> Path:
    """The folder that `name` is: a path, or a repository in the local Hugging Face cache or on the hub.

    Without `weights` only the small files are fetched.
    """
    path = Path(name)
    if os.path.isdir(path):  # unlike path.is_dir, false for what cannot be a path
        return path
    if os.path.isfile(path):
        raise CheckpointError(f"'{name}' is a file; give the folder that holds config.json and the weights.")
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or name.startswith("."):
        raise CheckpointError(f"There is no folder '{name}'.")
    return _from_hub(name, weights)


def _from_hub(name: str, weights: bool) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        if "/" not in name:
            raise CheckpointError(f"There is no folder '{name}'.") from error
        raise MissingExtra("huggingface_hub", "hub", f"There is no folder '{name}'; loading it by name") from error
    wanted, cached = _SMALL + ["*.safetensors"] * weights, None
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if not weights or any(cached.glob("*.safetensors")):  # else an earlier look fetched the small files alone
            return cached
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        pass
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)  # the download itself would wait without end for a first answer
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=HUB_SECONDS))
    except Exception as error:  # the client lets through whatever its HTTP library raises
        if cached is not None:
            return cached  # what it lacks is said where it is missed
        raise CheckpointError(
            f"'{name}' is no folder here, it is not in the local Hugging Face cache, and the hub did not give it "
            f"({type(error).__name__}). Check the spelling, or give the path of a folder."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    path = folder / "config.json" if folder.is_dir() else folder
    if not path.is_file():
        raise ConfigError(f"'{folder}' has no config.json: it is no model folder, or a copy of one was interrupted.")
    data = _json(path)
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a JSON object: got {type(data).__name__}.")
    return data


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:  # Python's own limits, on the digits of a number
        raise ConfigError(f"'{path}' cannot be read: {error}.") from error


class Weights:
    """The tensors of a folder, by their published names, read one at a time from memory-mapped files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = self._files()
        self.open = {file: self._opened(file) for file in sorted(set(self.files.values()))}
        self.scratch = self.piece = torch.empty(0, dtype=torch.uint8)  # kept, so that memory is not torn to pieces
        self.headers: dict[str, tuple[int, dict[str, Any]]] = {}  # where the data starts, and what is where

    def _files(self) -> dict[str, str]:
        """Published name → file."""
        if (self.folder / INDEX).is_file():
            index = _json(self.folder / INDEX)
            files = index.get("weight_map") if isinstance(index, Mapping) else None
            if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
                raise CheckpointError(f"'{self.folder / INDEX}' has no usable `weight_map`.")
            for file in set(files.values()):
                if not file.endswith(".safetensors") or Path(file).name != file:
                    raise CheckpointError(
                        f"'{self.folder / INDEX}' names {file!r}; only safetensors files in its own folder are read."
                    )
                if not (self.folder / file).is_file():
                    raise CheckpointError(
                        f"'{self.folder / file}' is missing: the copy was interrupted. Fetch it again."
                    )
            return files
        if (self.folder / WEIGHTS).is_file():
            return dict.fromkeys(self._opened(WEIGHTS).keys(), WEIGHTS)
        others = sorted(p.name for p in self.folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        hint = f" It has {others[0]}, a pickle, which can execute code: convert it to safetensors." if others else ""
        raise CheckpointError(f"'{self.folder}' has no {WEIGHTS} and no {INDEX}.{hint}")

    def _opened(self, file: str) -> Any:
        try:
            return safe_open(self.folder / file, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"'{self.folder / file}' is damaged or cut short ({error}). Fetch it again."
            ) from error

    def shape(self, name: str) -> list[int]:
        """The shape of a published tensor, without reading it."""
        shape: list[int] = self._file(name).get_slice(name).get_shape()
        return shape

    def read(self, name: str) -> Tensor:
        """A published tensor; its memory is the mapped file until something is written to it."""
        try:
            tensor: Tensor = self._file(name).get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"Tensor '{name}' in '{self.folder}' cannot be read ({error}).") from error
        return tensor

    def copy(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A published tensor in memory of its own, in `dtype` if given. No mapped page of the file counts beside it."""
        stored = self.read(name)
        return self._filled(name, torch.empty(stored.shape, dtype=dtype or stored.dtype))

    def glance(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The same in memory that the next glance writes over: for what is laid out anew."""
        stored = self.read(name)
        kind = dtype or stored.dtype
        if self.scratch.nbytes < stored.numel() * kind.itemsize:
            self.scratch = torch.empty(stored.numel() * kind.itemsize, dtype=torch.uint8)
        room = self.scratch[: stored.numel() * kind.itemsize].view(kind)
        return self._filled(name, room.view(stored.shape))

    def _filled(self, name: str, out: Tensor) -> Tensor:
        stored, path = self.read(name), self.folder / self.files[name]
        if stored.dtype != out.dtype and not self.piece.nbytes:
            self.piece = torch.empty(PIECE, dtype=torch.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(self._offset(name))
                for part in out.view(-1).split(PIECE // stored.element_size()):
                    same = part.dtype == stored.dtype
                    raw = part if same else self.piece[: len(part) * stored.element_size()].view(stored.dtype)
                    _fill(raw, file)
                    if not same:
                        part.copy_(raw)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"'{path}' cannot be read to the end ({error}).") from error
        return out

    def _offset(self, name: str) -> int:
        """Where the tensor's bytes start in its file, whose header has been checked when it was opened."""
        file = self.files[name]
        if file not in self.headers:
            with (self.folder / file).open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                self.headers[file] = 8 + length, json.loads(stream.read(length))
        start, header = self.headers[file]
        begin: int = header[name]["data_offsets"][0]
        return start + begin

    def _file(self, name: str) -> Any:
        file = self.open[self.files[name]]
        if name not in file.keys():  # noqa: SIM118
            raise CheckpointError(f"'{self.folder / INDEX}' says '{name}' is in '{self.files[name]}': it is not.")
        return file


def _fill(tensor: Tensor, file: Any) -> None:
    """Fill a tensor of one dimension with the next bytes of an unbuffered file."""
    rest = memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an array is a buffer
    while rest:
        if not (count := file.readinto(rest)):
            raise EOFError("it ends too early")
        rest = rest[count:]
