"""docs/families.md says what is true of the code: every family, its lines, and a difference within the law."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "families.py"
    made = importlib.util.spec_from_file_location("families_page", path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_code(writer: ModuleType) -> None:
    """All but the measured differences is written again and must be the same."""
    kept = writer.PAGE.read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w-]+)` \| \d+ \| (\S+) \|", kept, re.MULTILINE)
    differences = {name: float(far) for name, far in told}
    assert writer.page(differences) == kept
    assert all(far <= 1e-5 for far in differences.values())
    assert set(differences) == set(writer.types())


def test_every_proof_is_a_file_that_is_there(writer: ModuleType) -> None:
    for _, _, file in writer.PARTS:
        assert (writer.ROOT / file).exists(), file
