"""Encoder-decoders at full size, on no memory: their parameters are the published ones."""

from __future__ import annotations

from typing import Any

import pytest

from openbook.models.describe import describe
from tests.models.published_pairs import PARAMETERS


@pytest.mark.parametrize(("name", "config", "total"), PARAMETERS, ids=[name for name, *_ in PARAMETERS])
def test_parameters_are_the_published_ones(name: str, config: dict[str, Any], total: int) -> None:
    assert describe(config).total == total, name
