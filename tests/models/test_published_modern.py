"""Published sizes of newer dense decoders are exact, from their config.json alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openbook.models.describe import describe
from tests.models.published_modern import CHECKED, PARAMETERS


@pytest.mark.parametrize(("config", "total"), [row[1:] for row in PARAMETERS], ids=[row[0] for row in PARAMETERS])
def test_published_sizes_are_exact(config: dict[str, Any], total: int) -> None:
    told = describe(config)
    assert told.total == sum(told.parts.values()) == total


@pytest.mark.parametrize("config", [row[1] for row in CHECKED], ids=[row[0] for row in CHECKED])
def test_sizes_are_those_of_the_reference(config: dict[str, Any]) -> None:
    import transformers

    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    kind = config["architectures"][0]
    with torch.device("meta"):
        reference = getattr(transformers, kind)(getattr(transformers, kind.replace("ForCausalLM", "Config"))(**values))
    assert describe(config).total == sum(parameter.numel() for parameter in reference.parameters())
