"""Mixtral (Jiang et al. 2024): Mistral with a mixture of experts for the feed-forward layer."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, classes_of_last, language, layers_of, none
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


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8)
    attention = attention_of(config, shape, config.get("sliding_window", None, int))
    moe = spec.MoE(
        experts=config.size("num_local_experts", 8),
        top_k=config.size("num_experts_per_tok", 2),
        expert=spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu")),
        balance=config.get("router_aux_loss_coef", 0.001),
        jitter=config.get("router_jitter_noise", 0.0),
    )
    return decoder(shape, spec.Norm(eps=config.get("rms_norm_eps", 1e-5)), lambda _: attention, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    moe: spec.MoE = layers_of(model.stack, spec.MoE)[0]
    return write_decoder(model) | {
        "sliding_window": write_windows(model)["sliding_window"],
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance,
        "router_jitter_noise": moe.jitter,
    }


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
