"""Mixtral (Jiang et al. 2024): Mistral with a mixture of experts for the feed-forward layer."""

from __future__ import annotations

from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import chosen
from openbook.models.family import Family, classes_of_last, language, none
from openbook.models.names import Name
from openbook.models.parts import (
    BASE,
    BLOCK,
    IGNORE,
    PRE_NORMS,
    attention_of,
    decoder,
    read_shape,
    write_decoder,
    write_windows,
)
from openbook.nn import spec

MIXTURE: fields.Fields = {**chosen(8, 2), "jitter": ("router_jitter_noise", 0.0)}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8)
    attention = attention_of(config, shape, config.get("sliding_window", None, int))
    expert = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    moe = spec.MoE(expert=expert, **fields.take(config, MIXTURE))
    return decoder(shape, spec.Norm(eps=config.get("rms_norm_eps", 1e-5)), lambda _: attention, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    own = {"sliding_window": write_windows(model)["sliding_window"]}
    return write_decoder(model) | own | fields.say(fields.first(model, spec.MoE), MIXTURE)


EXPERTS = (
    Name("model.layers.{i}.block_sparse_moe.gate", f"{BLOCK}.1.layer.router"),
    Name("model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight", f"{BLOCK}.1.layer.experts.gate"),
    Name("model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight", f"{BLOCK}.1.layer.experts.up"),
    Name("model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight", f"{BLOCK}.1.layer.experts.down"),
)

FAMILY = Family(
    model_type="mixtral",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + EXPERTS,
    heads={"MixtralForCausalLM": language, "MixtralModel": none, "MixtralForSequenceClassification": classes_of_last},
    prefix="model.",
    ignore=IGNORE,
)
