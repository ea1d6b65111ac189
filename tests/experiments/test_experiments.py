"""Every experiment runs in its quick form, and what it expects comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import lab

RESULTS = lab.RESULTS


def test_the_page_is_that_of_the_results() -> None:
    assert (RESULTS.parent / "README.md").read_text(encoding="utf-8") == lab.page()


@pytest.mark.slow
@pytest.mark.parametrize("name", lab.known())
def test_what_was_expected_comes_out(name: str, tmp_path: Path) -> None:
    assert lab.report(name, quick=True, seed=0, out=tmp_path) == 0
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert json.loads((tmp_path / f"{name}.json").read_text())["claims"]


@pytest.mark.parametrize("name", lab.known())
def test_a_full_run_is_kept(name: str) -> None:
    """Its numbers and its picture; and each of its claims held."""
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    assert not kept["quick"]
    assert all(kept["claims"].values())
    assert (RESULTS / f"{name}.png").exists()


def test_nothing_holds_of_turned_results() -> None:
    """The seeded fault: claims are no decoration. One layer's curve for two layers', and the claims are false."""
    kept = json.loads((RESULTS / "induction.json").read_text())["results"]
    curves = kept["curves"]
    curves["1 layer"], curves["2 layers"] = curves["2 layers"], curves["1 layer"]
    assert not any(lab.load("induction").claims(kept).values())
