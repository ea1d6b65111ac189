"""Models by name: from the local Hugging Face cache without a network, and a quick clear error otherwise."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models.damage import folder

pytest.importorskip("huggingface_hub")
SHA = "0123456789abcdef0123456789abcdef01234567"
LOOK = """
import sys
from openbook.errors import OpenbookError
from openbook.models.describe import describe
from openbook.models.load import load
try:
    found = describe(sys.argv[2]).total if sys.argv[1] == "describe" else type(load(sys.argv[2])).__name__
except OpenbookError as error:
    found = f"{type(error).__name__}: {error}"
print(found)
"""


def look(verb: str, name: str, home: Path, **environment: str) -> str:
    """What loading or describing by name says, in a process with its own cache."""
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, verb, name], env=env, capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout.strip()


def cached(home: Path, name: str, source: Path, files: str = "*") -> Path:
    """A repository as the hub's client keeps it: files by content, a snapshot of links, a reference to it."""
    repository = home / "hub" / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(source.glob(files))):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    return snapshot


@pytest.mark.slow
def test_from_the_local_cache(tmp_path: Path) -> None:
    model = folder(tmp_path)
    cached(tmp_path / "home", "someone/a-model", model)
    cached(tmp_path / "home", "alone", model)
    assert look("load", "someone/a-model", tmp_path / "home") == "LanguageModel"
    assert look("load", "alone", tmp_path / "home") == "LanguageModel"
    assert int(look("describe", "someone/a-model", tmp_path / "home")) > 1000


@pytest.mark.slow
def test_a_config_alone_can_be_described_but_not_loaded(tmp_path: Path) -> None:
    cached(tmp_path / "home", "someone/a-model", folder(tmp_path), "*.json")
    assert int(look("describe", "someone/a-model", tmp_path / "home")) > 1000
    message = look("load", "someone/a-model", tmp_path / "home")
    assert message.startswith("CheckpointError")
    assert "has no model.safetensors" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["someone/unknown", "someone/../etc", "..", "-x/y", "a--b", "x" * 300])
def test_unknown_names_are_a_quick_error(name: str, tmp_path: Path) -> None:
    start = time.monotonic()
    message = look("load", name, tmp_path / "home")
    assert message.startswith(("CheckpointError", "ConfigError"))
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    """It takes the call and stays silent: ten seconds, not for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        message = look(
            "load", "someone/unknown", tmp_path / "home", HF_HUB_OFFLINE="0", HF_ENDPOINT=place, NO_PROXY="*"
        )
    assert "the hub did not give it" in message
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    for place in ("http://127.0.0.1:9", "nonsense"):
        message = look(
            "load", "someone/unknown", tmp_path / "home", HF_HUB_OFFLINE="0", HF_ENDPOINT=place, NO_PROXY="*"
        )
        assert "Check the spelling, or give the path of a folder" in message
