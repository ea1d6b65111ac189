"""Checkpoints: damage, other runs, full disks, two runs at once, what is kept."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from openbook.errors import CheckpointError, OpenbookError
from openbook.train import checkpoint as module
from openbook.train.checkpoint import (
    MOMENTS,
    RECORD,
    WEIGHTS,
    Cadence,
    Checkpoints,
    Snapshot,
    differences,
    only_one,
    put_weights,
    random_states,
    require_space,
    restore_random_states,
    weights_of,
)
from tests.train.tiny import tiny_model, tiny_run

IDENTITY = {"train": {"rows": 8}, "data": "abc"}


def store(folder: Path, **values: Any) -> Checkpoints:
    return Checkpoints(folder, IDENTITY, Cadence(**values))


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        model={"weight": torch.full((3,), float(step))},
        optimizer={"weight/exp_avg": torch.ones(3)},
        record={"step": step, "note": "x"},
    )


def filled(folder: Path) -> Checkpoints:
    kept = store(folder)
    for step in (1, 2, 3):
        kept.save(snapshot(step))
    return kept


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    filled(tmp_path)
    found = store(tmp_path).latest()
    assert found is not None
    assert found.record == {"step": 3, "note": "x"}
    assert torch.equal(found.model["weight"], torch.full((3,), 3.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000002", "step-0000000003"]
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.pkl"))


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert store(tmp_path / "absent").latest() is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS, RECORD])
def test_a_damaged_one_falls_back_loudly(
    harm: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path)
    harm(tmp_path / "step-0000000003" / name)
    found = store(tmp_path).latest()
    assert found is not None
    assert found.record["step"] == 2
    said = capsys.readouterr().err
    assert "step-0000000003" in said
    assert "step-0000000002" in said
    assert not (tmp_path / "step-0000000003").exists()


def test_another_format_is_an_error_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(CheckpointError, match=r"has format 1; this version of openbook reads 2"):
        store(tmp_path).latest()
    assert len(list(tmp_path.iterdir())) == 2


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    filled(tmp_path)
    for path in tmp_path.iterdir():
        cut(path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints .* Delete that folder to start over"):
        store(tmp_path).latest()


def test_another_run_is_named_by_its_difference(tmp_path: Path) -> None:
    filled(tmp_path)
    other = Checkpoints(tmp_path, {"train": {"rows": 16}, "data": "abc", "new": True})
    with pytest.raises(CheckpointError, match=r"`train.rows` was 8, now 16; `new` was null, now true"):
        other.latest()


def test_differences_of_trees() -> None:
    assert differences({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 2]}}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["`a.b` was 1, now 2"]


def test_leftovers_of_a_kill_disappear_and_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    kept.save_best({"weight": torch.ones(3)}, {"step": 2})
    (tmp_path / ".step-0000000004.abc.part").mkdir()
    shutil.move(tmp_path / "best", tmp_path / ".best.xyz.old")
    again = store(tmp_path)
    assert again.latest() is not None
    assert again.best() is not None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_stops_with_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = filled(tmp_path)

    def full(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"(?s)disk is full.*step-0000000003', is whole; the same command"):
        kept.save(snapshot(4))
    found = store(tmp_path).latest()
    assert found is not None
    assert found.record["step"] == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_while_writing_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = filled(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        kept.save(snapshot(4))


def test_too_little_space_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(OpenbookError, match=r"Not enough space .* `checkpoint.keep`"):
        require_space(tmp_path, tiny_model(), Cadence())


def test_saving_is_due_after_the_longer_of_time_and_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    kept = store(tmp_path, every=30.0, overhead=0.05)
    now[0] += 29
    assert not kept.due()
    now[0] += 1
    assert kept.due()
    kept.cost, kept.saved_at = 4.0, now[0]
    now[0] += 79
    assert not kept.due()
    now[0] += 1
    assert kept.due()


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with only_one(tmp_path / "run"):  # noqa: SIM117
        with pytest.raises(OpenbookError, match="Another run"), only_one(tmp_path / "run"):
            pass
    with only_one(tmp_path / "run"):
        pass


def test_random_states_go_round() -> None:
    state = json.loads(json.dumps(random_states()))
    before = (random.random(), np.random.rand(), torch.rand(3).tolist())
    restore_random_states(state)
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == before


def test_weights_of_another_shape_or_name() -> None:
    model = tiny_model()
    with pytest.raises(CheckpointError, match="another model"):
        put_weights(model, {})
    wrong = {name: torch.zeros(2) for name in weights_of(model)}
    with pytest.raises(CheckpointError, match=r"is \[2\]; the model's is"):
        put_weights(model, wrong)


@pytest.mark.parametrize("wrong", [{"every": -1.0}, {"overhead": 0.0}, {"keep": 0}, {"every": float("nan")}])
def test_impossible_cadence(wrong: dict[str, Any]) -> None:
    with pytest.raises(OpenbookError, match=f"checkpoint.{next(iter(wrong))}"):
        Cadence(**wrong)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    from openbook.train.loop import fit

    run = tiny_run(tmp_path, every=0.0)
    fit(run)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "step-0000000011", "step-0000000012"]
    best = Checkpoints(tmp_path / "checkpoints", {"run": "tiny"}).best()
    assert best is not None
    assert best.keys() == weights_of(run.model).keys()
