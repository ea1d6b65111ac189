"""Where the large archives of real data lie that some tests read: OPENBOOK_DATA, or `../data` beside the project.

They hold `pretrain/` and `tasks/`. They do not come with the project; a test that needs them is skipped without.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "data"


def archive(inside: str) -> Path:
    """The file or folder `inside` the archives; the test is skipped where it is missing."""
    path = Path(os.environ.get("OPENBOOK_DATA") or _BESIDE) / inside
    if not path.exists():
        pytest.skip(f"no {inside}: unpack the archives and name their folder in OPENBOOK_DATA")
    return path
