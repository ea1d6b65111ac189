"""What a run has read, from its folder alone: all of it, a part of it, and folders that hold no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.cli import main
from openbook.config import load
from openbook.errors import CheckpointError
from openbook.train.pretrain import pretrain
from openbook.train.recipe import Recipe
from openbook.train.reread import read_of
from tests.train.test_sources import mixed as mixed


@pytest.mark.slow
def test_what_a_run_read_is_listed_again(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pretrain(load(Recipe, mixed, ["--out", str(mixed.parent / "run"), "--train.prompt", ""]))
    written = json.loads((out / "reading.json").read_text())
    found = read_of(out)
    assert sum(read.rows for read in found.values()) == written["rows"]
    assert {name: pytest.approx(read.epochs) for name, read in found.items()} == written["epochs"]
    for read in found.values():
        documents = list(read.documents())
        assert sum(document.tokens for document in documents) == read.tokens
        assert all(Path(document.path).exists() for document in documents)
    first = read_of(out, 4)
    assert sum(read.rows for read in first.values()) == 4
    capsys.readouterr()
    assert main(["data", "inspect", str(out), "--rows", "4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sum(source["rows"] for source in shown.values()) == 4
    (out / "reading.json").unlink()  # as a run that was stopped: its checkpoint says how far it was
    assert sum(read.rows for read in read_of(out).values()) == written["rows"]


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        read_of(tmp_path)
