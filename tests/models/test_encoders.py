"""Encoders' config.json: spellings of the published folders, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from openbook.errors import ConfigError
from openbook.models.registry import read, say
from openbook.nn import spec
from tests.families.encoders import DISTILBERT, MODERN
from tests.models.published_encoders import PUBLISHED

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 30,
}


def of(kind: str, **values: Any) -> spec.Model:
    """The spec of a small configuration, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read({"model_type": kind, **SMALL, **values})[1]


def test_modernbert_as_it_is_published_and_as_it_is_saved_now() -> None:
    """One number for every how many layers see all, and two bases, or a list of layer types and tables of rules."""
    once = {
        **MODERN,
        "model_type": "modernbert",
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 5000.0,
        "local_rope_theta": 700.0,
        "layer_norm_eps": 1e-4,
        "position_embedding_type": "absolute",
        "sparse_prediction": False,
        "repad_logits_with_grad": False,
    }
    now = {
        **MODERN,
        "model_type": "modernbert",
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(once)[1] == read(now)[1]
    layers = [block.branches[0].layer for block in read(now)[1].stack.blocks]
    assert [layer.pattern.window for layer in layers] == [None, 5, 5, None]
    assert [layer.rope.theta for layer in layers] == [5000, 700, 700, 5000]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_said_by_their_own_family(name: str) -> None:
    config = PUBLISHED[name][0]
    model = read(config)[1]
    family, said = say(model, config["model_type"], config)
    assert family.model_type == config["model_type"]
    assert said["architectures"] == config["architectures"]
    assert read(said)[1] == model


def test_keys_of_the_first_published_folders_are_known() -> None:
    of("albert", embedding_size=6, down_scale_factor=1, gap_size=0, net_structure_type=0, num_memory_blocks=0)
    of("xlm-roberta", output_past=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read({"model_type": "distilbert", **DISTILBERT, "tie_weights_": True, "sinusoidal_pos_embds": True})


def test_positions_begin_after_the_padding_id() -> None:
    assert of("roberta").embed.positions == spec.Learned(count=30, offset=2)
    assert of("roberta", pad_token_id=4).context == 25
    family, said = say(of("roberta", pad_token_id=4), "roberta", {"pad_token_id": 1})
    assert (family.model_type, said["pad_token_id"]) == ("roberta", 4)


def test_a_summary_without_activation() -> None:
    choice = {"architectures": ["ElectraForMultipleChoice"], "embedding_size": 6}
    heads = of("electra", summary_activation=None, **choice).heads
    assert isinstance(heads[0], spec.Classes)
    assert heads[0].transform == spec.Transform(activation=None)
    assert say(of("electra", summary_activation=None, **choice), "electra")[1]["summary_activation"] is None
    assert of("electra", **choice).heads[0].transform == spec.Transform(activation="gelu")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("roberta", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"max_position_embeddings": 2}, "`max_position_embeddings` must be above 2"),
        ("bert", {"num_attention_heads": 5}, "must divide"),
        ("electra", {"summary_type": "mean"}, "summary_type"),
        ("electra", {"summary_use_proj": False}, "summary_use_proj"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets"),
        ("albert", {"embedding_size": 12}, "embedding_size"),
        ("albert", {"embedding_size": 6, "num_hidden_groups": 5}, "num_hidden_groups"),
        ("albert", {"embedding_size": 6, "num_hidden_groups": 4, "inner_group_num": 2}, "inner_group_num"),
        ("albert", {"embedding_size": 6, "inner_group_num": 20_000}, "inner_group_num"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("modernbert", {"hidden_activation": "gule"}, "gelu"),
    ],
)
def test_what_computes_and_is_not_known_is_refused(kind: str, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        of(kind, **values)
