"""Models with experts at full size, on no memory: parameters in all, and those that one token meets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openbook.models.cost import active, inventory
from openbook.models.describe import describe
from openbook.models.registry import read
from tests.models.published_experts import COUNTED, SIZES


@pytest.mark.parametrize(("config", "total", "all_", "met"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_published_sizes_are_exact(config: dict[str, Any], total: int, all_: float, met: float) -> None:
    found = inventory(read(config)[1])
    assert describe(config).total == total
    assert total / 1e9 == pytest.approx(all_, rel=0.03)
    # Publishers count what a token meets in their own ways: some leave the embedding out.
    embedding = config["vocab_size"] * config.get("hidden_size", config.get("d_model"))
    tables = [0, embedding] if config["tie_word_embeddings"] else [0, embedding, 2 * embedding]
    assert any((active(found) - table) / 1e9 == pytest.approx(met, abs=0.05 * met + 0.05) for table in tables)


@pytest.mark.parametrize(("name", "config"), COUNTED, ids=[name for name, _ in COUNTED])
def test_sizes_are_those_of_the_reference(name: str, config: dict[str, Any]) -> None:
    import transformers

    keys = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        reference = getattr(transformers, config["architectures"][0])(
            transformers.AutoConfig.for_model(config["model_type"], **keys)
        )
    assert describe(config).total == sum(parameter.numel() for parameter in reference.parameters()), name
