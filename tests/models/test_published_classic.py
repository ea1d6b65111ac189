"""The classic decoders at full size, on no memory: their numbers of parameters are the published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import OpenbookWarning
from openbook.models.describe import describe
from openbook.models.load import load, save
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.init import initialise
from openbook.nn.model import LanguageModel
from tests.models.published_classic import COUNTED, GPT_3, PARAMETERS, gpt3


@pytest.mark.parametrize(("config", "total"), [row[1:] for row in PARAMETERS], ids=[row[0] for row in PARAMETERS])
def test_published_sizes_are_exact(config: dict[str, Any], total: int) -> None:
    assert describe(config).total == total
    assert describe({**config, "vocab_size": config["vocab_size"] + 1}).total != total


@pytest.mark.parametrize(("name", "config"), COUNTED, ids=[name for name, _ in COUNTED])
def test_sizes_are_those_of_the_reference(name: str, config: dict[str, Any]) -> None:
    import transformers

    keys = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        reference = getattr(transformers, config["architectures"][0])(
            transformers.AutoConfig.for_model(config["model_type"], **keys)
        )
    assert describe(config).total == sum(parameter.numel() for parameter in reference.parameters()), name


@pytest.mark.parametrize(("dim", "layers", "heads", "total"), GPT_3, ids=[f"{row[3]:.3g}" for row in GPT_3])
def test_gpt_3_is_a_value(dim: int, layers: int, heads: int, total: float) -> None:
    """As large as the paper rounds it, and by hand: 12 D² and 13 D a layer, the tables, the last norm."""
    with torch.device("meta"):
        model = build(gpt3(dim, layers, heads))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == layers * (12 * dim**2 + 13 * dim) + (50257 + 2048 + 2) * dim
    assert counted == pytest.approx(total, rel=0.02)
    assert [len(set(model.patterns)), len(model.stack.blocks)] == [2, layers]


def reach(of: spec.Model) -> tuple[LanguageModel, int]:
    """A model with random weights, and the last token of 24 that a change of the first one shows at."""
    model = build(of).eval()
    initialise(model, 2, std=0.4)
    ids = torch.arange(24).unsqueeze(0)
    other = torch.cat([torch.tensor([[40]]), ids[:, 1:]], dim=1)
    changed = (model(ids) - model(other)).abs().amax(-1)[0] > 0
    return model, int(changed.nonzero().max())


@torch.no_grad()
def test_banded_and_dense_layers_in_turn(tmp_path: Path) -> None:
    """Bands reach as far as they say, a dense layer everywhere. What no family says is saved as what it is."""
    both = gpt3(16, 2, 4, window=5, context=32, vocab=50)
    banded = replace(both, stack=replace(both.stack, blocks=both.stack.blocks[1:] * 2))
    assert reach(banded)[1] == 2 * 4
    model, last = reach(both)
    assert last == 23
    with pytest.warns(OpenbookWarning, match="No published family can say this model"):
        save(model, tmp_path)
    ids = torch.arange(24).unsqueeze(0)
    assert torch.equal(load(tmp_path)(ids), model(ids))
