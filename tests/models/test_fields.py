"""Keys as data: a table read and written is the same, and what it does not know fails as loudly as ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openbook.errors import ConfigError
from openbook.models import fields, registry
from openbook.models.config import Config
from openbook.models.family import CannotSay
from openbook.nn import spec
from tests.families.states import GRANITE

ROWS: fields.Fields = {
    "hidden": "inner_size",
    "activation": ("act", "gelu_new"),
    "bias": ("use_bias", True),
    "dropout": ("rate", 0.1),
    "limit": ("top", float),
}


def test_silence_is_the_default() -> None:
    assert fields.take(Config({"inner_size": 3}), ROWS) == {
        "hidden": 3,
        "activation": "gelu_tanh",
        "bias": True,
        "dropout": 0.1,
        "limit": None,
    }


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "relu2"])
def test_what_is_written_is_read_back(act: str) -> None:
    said = {"inner_size": 5, "act": act, "use_bias": False, "rate": 0.25, "top": 7.0}
    layer = spec.MLP(**fields.take(Config(said), ROWS))
    again = fields.say(layer, ROWS)
    assert spec.MLP(**fields.take(Config(again), ROWS)) == layer
    assert again == said | {"act": "gelu_new" if act == "gelu_pytorch_tanh" else act}  # the family's own word for it


@pytest.mark.parametrize(
    "wrong",
    [{"inner_size": 0}, {"inner_size": None}, {"act": "gleu"}, {"use_bias": 1}, {"rate": "much"}, {"top": True}],
    ids=str,
)
def test_what_is_not_known_names_its_key(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=f"`{key}`"):
        fields.take(Config({"inner_size": 3} | wrong), ROWS)


def test_a_key_not_in_the_table_stays_unread() -> None:
    config = Config({"inner_size": 3, "other": 1})
    fields.take(config, ROWS)
    assert config.unread() == ["other"]


def test_a_table_is_written_off_the_first_of_each_kind() -> None:
    layer = spec.MLP(hidden=5, activation="relu")
    branch = spec.Branch(layer=layer, norm=spec.Norm(eps=0.5))
    other = replace(branch, layer=replace(layer, hidden=6), norm=None)
    stack = spec.Stack(dim=4, blocks=(spec.Block(branches=(other, branch)),))
    model = spec.Model(embed=spec.Embed(vocab=9, dim=4), stack=stack, heads=())
    table: fields.Table = {spec.MLP: {"hidden": "h"}, spec.Norm: {"eps": ("e", 1.0)}, spec.Embed: {"vocab": "v"}}
    assert fields.write(model, table) == {"h": 6, "e": 0.5, "v": 9}
    with pytest.raises(CannotSay, match="Attention"):
        fields.first(model, spec.Attention)


def test_without_experts_a_token_may_have_none() -> None:
    """As the dense ones of Granite 4 are published."""
    said = {**GRANITE, "model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"]}
    _, model = registry.read(said | {"num_local_experts": 0, "num_experts_per_tok": 0})
    assert isinstance(model.stack.blocks[0].branches[-1].layer, spec.MLP)
    with pytest.raises(ConfigError, match="top_k"):
        registry.read(said | {"num_experts_per_tok": 0})
