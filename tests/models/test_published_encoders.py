"""Published encoders have the published numbers of parameters; blocks that run again count once, work each time."""

from __future__ import annotations

from typing import Any

import pytest

from openbook.models.cost import inventory, work
from openbook.models.describe import describe
from openbook.models.registry import read
from tests.models.published_encoders import PUBLISHED

EACH = pytest.mark.parametrize(("config", "total"), PUBLISHED.values(), ids=PUBLISHED)


@EACH
def test_published_counts_are_exact(config: dict[str, Any], total: int) -> None:
    assert describe(config).total == total


@pytest.mark.slow
@EACH
def test_the_reference_counts_the_same(config: dict[str, Any], total: int) -> None:
    """So that the table itself is no typing error."""
    import torch
    import transformers

    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        made = transformers.AutoConfig.for_model(config["model_type"], **values)
        model = getattr(transformers, config["architectures"][0])(made)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_albert_works_like_the_model_it_is_unrolled_from() -> None:
    """ALBERT-base holds a tenth of BERT-base and does the same work in its blocks."""
    shared, whole = (PUBLISHED[name][0] for name in ("ALBERT-base", "BERT-base uncased"))
    found, other = (work(inventory(read(config)[1]), 512) for config in (shared, whole))
    assert found.attention_mean == other.attention_mean
    assert found.products - other.products == 2 * 128 * 768  # its embedding is widened
    page = describe(shared).page()
    assert "12 blocks" in page
    assert "run 12 times" in page
