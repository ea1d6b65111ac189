"""State space models and hybrids at full size, on no memory: the published parameters, states that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openbook.models.describe import describe
from tests.models.published_ssm import ACTIVE, BAMBA, CODESTRAL, JAMBA, KEPT, PARAMETERS, QWEN3_NEXT


@pytest.mark.parametrize(("config", "total"), [row[1:] for row in PARAMETERS], ids=[row[0] for row in PARAMETERS])
def test_published_sizes_are_exact(config: dict[str, Any], total: int) -> None:
    assert describe(config).total == total
    assert describe({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}).total != total


@pytest.mark.parametrize("config", [CODESTRAL, JAMBA, QWEN3_NEXT, BAMBA], ids=lambda config: config["model_type"])
def test_sizes_are_those_of_the_reference(config: dict[str, Any]) -> None:
    import transformers

    keys = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        reference = getattr(transformers, config["architectures"][0])(
            transformers.AutoConfig.for_model(config["model_type"], **keys)
        )
    assert describe(config).total == sum(parameter.numel() for parameter in reference.parameters())


@pytest.mark.parametrize(("config", "about"), [row[1:] for row in ACTIVE], ids=[row[0] for row in ACTIVE])
def test_a_token_meets_few_of_them(config: dict[str, Any], about: float) -> None:
    assert describe(config).active == pytest.approx(about, rel=0.01)


@pytest.mark.parametrize(("config", "kept"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT])
def test_states_are_constant(config: dict[str, Any], kept: int) -> None:
    told = describe(config)
    assert told.state.sequence == kept
    attention = sum(numbers for _, numbers in told.state.tokens)
    assert (told.state.bytes(100_000, 2) > told.state.bytes(1000, 2)) == (attention > 0)
    lines = told.page().splitlines()
    assert max(map(len, lines)) <= 100
