"""Saving: whole or not at all, over what is mapped, in shards; loading: never twice in memory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from openbook.errors import ConfigError, OpenbookError
from openbook.models import load as loading
from openbook.models import staging
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.models.registry import read
from openbook.nn.model import LanguageModel
from tests.models.damage import CONFIG, GPT2, MIXTRAL, folder


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def same(a: LanguageModel, b: LanguageModel) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def another() -> LanguageModel:
    return make(read(CONFIG)[1], seed=2)


# ------------------------------------------------------------------------------------------------ what goes wrong


def full_disk(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def failing(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("where", "name", "fault", "message"),
    [
        (loading, "save_file", full_disk, "The disk is full"),
        (loading, "save_file", failing(errno.EDQUOT), "The disk quota is used up"),
        (loading, "write_json", failing(errno.ENOSPC), "The disk is full"),
        (staging, "sync_file", failing(errno.EIO), "Cannot write to"),
        (staging.tempfile, "mkdtemp", failing(errno.EROFS), "read-only"),
        (staging.tempfile, "mkdtemp", failing(errno.EACCES), "Permission denied"),
    ],
)
def test_what_was_there_stays(
    where: Any, name: str, fault: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path)
    (path / "notes.txt").write_text("mine")
    before = contents(path)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fault)
        with pytest.raises(OpenbookError, match=message) as error:
            save(another(), path)
    assert str(path) in str(error.value)
    assert contents(path) == before  # no temporary files either
    save(another(), path)
    assert same(load(path), another())
    assert (path / "notes.txt").read_text() == "mine"


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 64 KiB, where this user may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs more rights")
    try:
        small, large = make(read(CONFIG)[1]), make(read({**CONFIG, "vocab_size": 2000})[1])
        save(small, disk / "model")
        before = contents(disk)
        with pytest.raises(OpenbookError, match="The disk is full: free space"):
            save(large, disk / "model")
        assert contents(disk) == before
        assert same(load(disk / "model"), small)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_exception_while_saving_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path)
    before = contents(path)
    monkeypatch.setattr(loading, "save_file", failing_with(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(another(), path)
    assert contents(path) == before


def failing_with(kind: type[BaseException]) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise kind

    return fail


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_stands_in_the_way(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OpenbookError, match="Cannot write to"):
        save(another(), tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`shard`"):
        save(another(), tmp_path / "x", shard=0)
    with pytest.raises(ConfigError, match="Unknown dtype"):
        save(another(), tmp_path / "x", dtype="int8")
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------ what goes right


@pytest.mark.parametrize("config", [CONFIG, GPT2, MIXTRAL], ids=lambda config: config["model_type"])
def test_over_the_folder_it_is_mapped_from(config: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path, config)
    model = load(path)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        save(model, path)
        assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
    assert same(load(path), model)


def test_a_loaded_model_can_be_changed_without_changing_its_file(tmp_path: Path) -> None:
    path = folder(tmp_path)
    before = contents(path)
    model = load(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert contents(path) == before


@pytest.mark.parametrize("shard", [1, 700, 3000, 10**9])
def test_shards(shard: int, tmp_path: Path) -> None:
    model = another()
    save(model, tmp_path / "out", shard=shard)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert same(load(tmp_path / "out"), model)
    if len(files) == 1:
        assert files[0].name == "model.safetensors"
        assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
        return
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"


def test_fewer_shards_leave_none_of_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for shard in (1, 3000, 10**9, 2000, 10**9):
        save(another(), path, shard=shard)
        assert same(load(path), another())
        whole = (path / "model.safetensors").exists()
        assert whole != (path / "model.safetensors.index.json").exists()
        assert not list(path.glob(".saving-*"))


@pytest.mark.parametrize("config", [CONFIG, GPT2, MIXTRAL], ids=lambda config: config["model_type"])
def test_another_dtype(config: dict[str, Any], tmp_path: Path) -> None:
    model = make(read(config)[1], seed=3)
    save(model, tmp_path / "half", dtype="bfloat16", shard=900)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load(tmp_path / "half")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    save(another(), tmp_path / "a")
    save(another(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# ------------------------------------------------------------------------------------------------ memory

PEAK = """
import resource, sys
import torch
from openbook.models.load import load
load(sys.argv[2])  # a tiny one: what Python and torch need is there before
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(sys.argv[1], dtype=sys.argv[3] if len(sys.argv) > 3 else None)
total = sum(float(parameter.sum()) for parameter in model.parameters())  # every page is touched
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * 1024, sum(p.numel() * p.element_size() for p in model.parameters()))
"""
LARGE: dict[str, dict[str, Any]] = {
    "as it is": {**CONFIG, "vocab_size": 20000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6},
    "turned": {**GPT2, "vocab_size": 20000, "n_embd": 768, "n_layer": 8},
    "stacked": {**MIXTRAL, "hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 6},
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_loading_holds_the_weights_once(name: str, dtype: str | None, tmp_path: Path) -> None:
    """Peak memory ≤ 1.15 × the weights for 300 MB; in another dtype 16 MB of buffers beside them."""
    model = make(read(LARGE[name])[1])
    assert 200e6 < sum(parameter.numel() * 4 for parameter in model.parameters()) < 400e6
    save(model, tmp_path / "large")
    program = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(folder(tmp_path / "tiny"))]
    done = subprocess.run([*program, *([dtype] if dtype else [])], capture_output=True, text=True, check=True)
    peak, size = map(float, done.stdout.split())
    assert peak <= 1.15 * size + (16e6 if dtype else 0)
