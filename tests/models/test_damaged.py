"""Weights that are damaged, missing, of another model, or meant to do harm: a clear error, nothing executed or read."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.errors import CheckpointError, ConfigError, OpenbookError, OpenbookWarning
from openbook.models.load import load, save
from tests.models.damage import (
    BERT,
    GPT2,
    MIXTRAL,
    change_config,
    change_weights,
    folder,
    weights,
    write_header,
    write_index,
)

UP = "model.layers.0.mlp.up_proj.weight"


def said(path: Path, **how: Any) -> str:
    """The message of the error that loading gives."""
    with pytest.raises(OpenbookError) as error:
        load(path, **how)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 100, -1, -500])
def test_cut_short(keep: int, tmp_path: Path) -> None:
    path = folder(tmp_path)
    data = weights(path).read_bytes()
    weights(path).write_bytes(data[:keep])
    assert "damaged or cut short" in said(path)
    assert str(weights(path)) in said(path)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (os.urandom(4000), None),
        (b"{}", 2**62),
        (b"{}", 2**64 - 1),
        (b"[" * 100_000, None),
        (b'{"a": {"dtype": "F32", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 9]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', None),
        (b'{"a": {"dtype": "F999", "shape": [1], "data_offsets": [0, 4]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', None),
        (b'{"a": 5}', None),
        (b"\xff" * 40, None),
    ],
    ids=["noise", "huge", "largest", "nested", "sizes", "backwards", "short", "dtype", "negative", "number", "bytes"],
)
def test_hostile_headers(header: bytes, length: int | None, tmp_path: Path) -> None:
    path = folder(tmp_path)
    write_header(path, header, b"\x00\x00\x00\x00", length)
    assert "damaged or cut short" in said(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_header(path, json.dumps({"a": entry, "b": entry}).encode(), b"\x00" * 8)
    assert "damaged or cut short" in said(path)


@pytest.mark.parametrize("shape", [(3, 12), (20, 13), (12, 20), (20,), (), (1, 20, 12), (0, 12)])
def test_wrong_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = folder(tmp_path)
    change_weights(path, lambda tensors: tensors.update({UP: torch.zeros(shape)}))
    message = said(path)
    assert UP in message
    assert str(shape) in message
    assert "(20, 12)" in message


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_wrong_shapes_of_what_is_laid_out_anew(dtype: str | None, tmp_path: Path) -> None:
    """Matrices that are split, turned or stacked, one expert of another size than the others."""
    path = folder(tmp_path / "turned", GPT2)
    name = "transformer.h.0.attn.c_attn.weight"
    for shape in [(12, 35), (36, 12), (12, 36, 1), (12,), ()]:
        change_weights(path, lambda tensors, shape=shape: tensors.update({name: torch.zeros(shape)}))
        assert "c_attn" in said(path, dtype=dtype)
    path = folder(tmp_path / "stacked", MIXTRAL)
    expert = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    for shape in [(1, 12), (20, 1), (1, 1), (20, 13), (12,), ()]:
        change_weights(path, lambda tensors, shape=shape: tensors.update({expert: torch.zeros(shape)}))
        assert "block_sparse_moe" in said(path, dtype=dtype)


def test_missing_tensors(tmp_path: Path) -> None:
    path = folder(tmp_path)
    change_weights(path, lambda tensors: tensors.pop(UP))
    assert f"lacks 1 of its tensors: {UP}" in said(path)
    change_weights(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    message = said(path)
    assert "lacks 10 of its tensors" in message
    assert "…" in message
    assert "interrupted" in message


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    path = folder(tmp_path)
    change_config(path, num_hidden_layers=3)
    assert "config.json describes another model" in said(path)
    change_config(path, num_hidden_layers=1)
    with pytest.warns(OpenbookWarning, match="9 tensors that this model has no place for"):
        load(path)


def test_extra_tensors_warn(tmp_path: Path) -> None:
    path = folder(tmp_path)
    change_weights(path, lambda tensors: tensors.update({"model.layers.7.x": torch.zeros(2)}))
    with pytest.warns(OpenbookWarning, match=r"holds 1 tensors that this model has no place for: model\.layers\.7\.x"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    path = folder(tmp_path)
    change_weights(path, lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))
    assert f"'{UP}' is {dtype}: a quantised tensor without its rules" in said(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
def test_other_floats_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    path = folder(tmp_path)
    right = load(path, dtype="float32")
    change_weights(path, lambda tensors: tensors.update({n: t.to(kind) for n, t in tensors.items()}))
    for wanted in (None, "float32", "bfloat16"):
        model = load(path, dtype=wanted)
        assert {p.dtype for p in model.parameters()} == {kind if wanted is None else getattr(torch, wanted)}
        for (name, ours), theirs in zip(model.named_parameters(), right.parameters(), strict=True):
            expected = theirs.to(kind).to(ours.dtype)
            assert torch.equal(ours, expected), name


# ------------------------------------------------------------------------------------------------ what is there


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path)
    weights(path).unlink()
    (path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    message = said(path)
    assert f"It has {name}, a pickle, which can execute code: convert it to safetensors" in message
    weights(path).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    assert "damaged or cut short" in said(path)
    assert not (tmp_path / "trace").exists()


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "modeling.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    change_config(path, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    load(path)
    assert not (tmp_path / "trace").exists()


def test_no_weights(tmp_path: Path) -> None:
    path = folder(tmp_path)
    weights(path).unlink()
    assert "has no model.safetensors and no model.safetensors.index.json" in said(path)
    weights(path).mkdir()
    assert "has no model.safetensors" in said(path)
    weights(path).rmdir()
    weights(path).symlink_to("gone")
    assert "has no model.safetensors" in said(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "../outside.safetensors"}, "only safetensors files in its own folder are read"),
        ({"a": "/etc/passwd"}, "only safetensors files in its own folder are read"),
        ({"a": "config.json"}, "only safetensors files in its own folder are read"),
        ({"a": "sub/x.safetensors"}, "only safetensors files in its own folder are read"),
        ({"a": ""}, "only safetensors files"),
        ({"a": ".."}, "only safetensors files"),
        ({"a": "gone.safetensors"}, "is missing: the copy was interrupted"),
        ({"a": 5}, "no usable `weight_map`"),
        ([], "no usable `weight_map`"),
        (None, "no usable `weight_map`"),
        ({}, "lacks 20 of its tensors"),
    ],
    ids=str,
)
def test_hostile_indices(files: Any, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path)
    (tmp_path / "outside.safetensors").write_bytes(weights(path).read_bytes())
    write_index(path, files)
    assert message in said(path)


def test_an_index_that_is_wrong_about_its_files(tmp_path: Path) -> None:
    path = folder(tmp_path)
    model = load(path)
    save(model, tmp_path / "shards", shard=2000)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    swapped = {**files, UP: next(file for file in files.values() if file != files[UP])}
    write_index(tmp_path / "shards", swapped)
    assert f"says '{UP}' is in" in said(tmp_path / "shards")
    index.write_text("[1,")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load(tmp_path / "shards")


def test_a_copy_that_was_interrupted(tmp_path: Path) -> None:
    """At each point of copying a sharded folder, file by file, the message is about what is missing."""
    model = load(folder(tmp_path))
    save(model, tmp_path / "whole", shard=2000)
    copies = sorted((tmp_path / "whole").iterdir())
    assert len(copies) > 4
    target = tmp_path / "half"
    target.mkdir()
    for file in copies[:-1]:
        (target / file.name).write_bytes(file.read_bytes())
        assert any(word in said(target) for word in ("interrupted", "has no model.safetensors"))
    last = copies[-1]
    (target / last.name).write_bytes(last.read_bytes()[:-9])
    assert "half written" in said(target) or "cut short" in said(target)
    (target / last.name).write_bytes(last.read_bytes())
    assert load(target).spec == model.spec


# ------------------------------------------------------------------------------------------------ the call


def test_links_are_followed(tmp_path: Path) -> None:
    path = folder(tmp_path)
    weights(path).rename(tmp_path / "blob")
    weights(path).symlink_to("../blob")
    (tmp_path / "link").symlink_to(path)
    assert load(tmp_path / "link").spec == load(path).spec


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at/all", "There is no folder"),
        ("./nowhere", "There is no folder"),
        ("has space", "There is no folder"),
        ("a\x00b", "There is no folder"),
        ("a" * 5000, "folder"),
    ],
)
def test_no_such_folder(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        load(weights(folder(tmp_path)))


def test_dtype_and_device(tmp_path: Path) -> None:
    path = folder(tmp_path)
    with pytest.raises(ConfigError, match="Unknown dtype 'bf16'"):
        load(path, dtype="bf16")
    with pytest.raises(ConfigError, match="Unknown dtype 'int8'"):
        load(path, dtype=torch.int8)
    with pytest.raises(ConfigError, match="Unknown device 'tpu'"):
        load(path, device="tpu")
    assert load(path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load(path, dtype="auto").dtype == torch.float32


@torch.no_grad()
def test_old_names_of_norms_and_a_missing_prefix(tmp_path: Path) -> None:
    """Published BERT folders say gamma and beta, and the bare model has no prefix."""
    path = folder(tmp_path, BERT)
    expected = load(path)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[old.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(name)

    change_weights(path, rename)
    ids = torch.arange(5).unsqueeze(0)
    assert torch.equal(load(path).encode(ids), expected.encode(ids))
