"""The machine and what follows from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from openbook import hardware, runtime
from openbook.errors import ConfigError


def test_machine_makes_sense() -> None:
    machine = hardware.machine()
    assert 1 <= machine.physical <= machine.logical
    assert 0 < machine.cores <= machine.logical
    assert 2**28 < machine.memory_free <= machine.memory
    assert (machine.compile_obstacle is None) <= (machine.compiler is not None)


def group(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def test_control_groups_version_2(tmp_path: Path) -> None:
    """The tightest limit on the way up counts, and `max` is none."""
    group(tmp_path / "a", cpu__max="150000 100000\n", memory__max="max\n")
    group(tmp_path / "a/b", cpu__max="max 100000\n", memory__max="1073741824\n")
    listing = tmp_path / "listing"
    listing.write_text("0::/a/b\n")
    assert hardware._cgroup_limit("cpu", tmp_path, listing) == 1.5
    assert hardware._cgroup_limit("memory", tmp_path, listing) == 2**30


def test_control_groups_version_1(tmp_path: Path) -> None:
    group(tmp_path / "cpu/x", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    group(tmp_path / "memory/x", memory__limit_in_bytes="9223372036854771712")
    listing = tmp_path / "listing"
    listing.write_text("4:memory:/x\n3:cpu,cpuacct:/x\nnonsense\n")
    assert hardware._cgroup_limit("cpu", tmp_path, listing) == 0.5
    assert hardware._cgroup_limit("memory", tmp_path, listing) is None


def test_without_control_groups(tmp_path: Path) -> None:
    assert hardware._cgroup_limit("cpu", tmp_path, tmp_path / "absent") is None


def test_threads_follow_the_environment_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert runtime.default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= runtime.default_threads() <= (os.cpu_count() or 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(runtime, "usable_cores", lambda: 0.5)
    assert runtime.default_threads() == 1
    with pytest.raises(ConfigError, match="threads"):
        runtime.use_threads(0)


# ------------------------------------------------------------------------------------------------ compiler


@pytest.fixture
def fresh_compiler(monkeypatch: pytest.MonkeyPatch):
    """The search for a compiler, not remembered from before nor after."""
    hardware.find_compiler.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    yield monkeypatch
    hardware.find_compiler.cache_clear()


def test_without_a_compiler_there_is_one_message(fresh_compiler: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh_compiler.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in str(runtime.compile_obstacle())


def test_a_compiler_named_but_absent(fresh_compiler: pytest.MonkeyPatch) -> None:
    fresh_compiler.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in str(runtime.compile_obstacle())


def test_a_compiler_that_fails(fresh_compiler: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++x"
    broken.write_text("#!/bin/sh\ncat >/dev/null\necho 'fatal error: vector: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    fresh_compiler.setenv("CXX", str(broken))
    assert "fatal error: vector" in str(runtime.compile_obstacle())


# ------------------------------------------------------------------------------------------------ device and dtype


def test_devices() -> None:
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:x", "", "cuda:99"):
        with pytest.raises(ConfigError):
            runtime.pick_device(wrong)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.pick_dtype("bf16") == runtime.pick_dtype("bfloat16") == torch.bfloat16
    assert runtime.pick_dtype("float32") == torch.float32
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        runtime.pick_dtype("bfloat6")
    monkeypatch.setattr(runtime, "cpu_features", lambda: ("AVX2",))
    assert runtime.pick_dtype("auto", torch.device("cpu")) == torch.float32
    monkeypatch.setattr(runtime, "cpu_features", lambda: ("AVX2", "AMX bf16"))
    assert runtime.pick_dtype("auto", torch.device("cpu")) == torch.bfloat16


# ------------------------------------------------------------------------------------------------ measured limits


@pytest.fixture
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path))
    return tmp_path


def measured(read: float) -> runtime.Peaks:
    return runtime.Peaks(threads=1, read=read, float32=1.0, bfloat16=2.0, int8=None)


def test_measured_once_and_kept(own_cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([10.0, 8.0, 12.0])
    monkeypatch.setattr(runtime, "_measure", lambda threads: measured(next(values)))  # noqa: ARG005
    assert runtime.peaks(1).read == 10.0
    assert runtime.peaks(1).read == 10.0
    assert runtime.peaks(1, again=True).read == 10.0, "a busy moment does not lower a limit"
    assert runtime.peaks(1, again=True).read == 12.0
    (file,) = own_cache_folder.glob("peaks-*.json")
    assert json.loads(file.read_text())["read"] == 12.0


def test_a_damaged_cache_is_measured_anew(own_cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_measure", lambda threads: measured(5.0))  # noqa: ARG005
    runtime.peaks(1)
    (file,) = own_cache_folder.glob("peaks-*.json")
    for damage in ('{"read": ', '{"read": 1}', "[]", "\xff"):
        file.write_text(damage, encoding="latin-1")
        assert runtime.peaks(1).read == 5.0


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(runtime, "_measure", lambda threads: measured(5.0))  # noqa: ARG005
    assert runtime.peaks(1).read == 5.0


@pytest.mark.slow
def test_a_real_measurement(own_cache_folder: Path) -> None:
    peaks = runtime.peaks(1)
    assert peaks.threads == 1
    assert 0.5 < peaks.read < 2000
    assert 1 < peaks.float32 < 1e5
    assert 0 < peaks.bfloat16 < 1e6
    assert list(own_cache_folder.iterdir())
