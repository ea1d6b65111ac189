"""Qwen 1.5 and 2 with experts (Yang et al. 2024 §2.2.2): a gated shared expert beside those a router chooses."""

from __future__ import annotations

from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import chosen, expert_names, mixture_of, sparse_layers, write_sparse
from openbook.models.family import Family
from openbook.models.modern import decoder_heads, rms
from openbook.models.parts import (
    BASE,
    GATED,
    IGNORE,
    PRE_NORMS,
    attention_of,
    decoder,
    read_shape,
    windows,
    write_decoder,
    write_windows,
)
from openbook.nn import spec


def read_mixture(
    config: Config, experts: int, top_k: int, hidden: int, shared: int | None, renormalise: bool = False
) -> spec.MoE:
    """The experts; the sizes are the family's defaults."""
    activation = config.activation("hidden_act", "silu")
    width = None if shared is None else config.size("shared_expert_intermediate_size", shared)
    rows = chosen(experts, top_k, config.spelled("num_experts", "num_local_experts"))
    return spec.MoE(
        expert=spec.MLP(hidden=config.size("moe_intermediate_size", hidden), activation=activation),
        routing=spec.Routing(renormalise=config.get("norm_topk_prob", renormalise)),
        shared=None if width is None else spec.MLP(hidden=width, activation=activation),
        shared_gate=width is not None,
        **fields.take(config, rows),
    )


def write_mixture(model: spec.Model) -> dict[str, Any]:
    """The keys that `read_mixture` reads."""
    moe = mixture_of(model)
    shared = {} if moe.shared is None else {"shared_expert_intermediate_size": moe.shared.hidden}
    own = {"norm_topk_prob": moe.routing.renormalise} | shared
    return write_sparse(model) | fields.say(moe, chosen(1, 1, "num_experts")) | own


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768)
    used, most = config.get("use_sliding_window", False), config.get("max_window_layers", 28)
    window = config.get("sliding_window", 4096) if used else config.raw("sliding_window") and None
    found = windows(config, shape.layers, lambda number: used and number % 2 == 0 and number < most, window)
    bias = config.get("qkv_bias", True)
    layers = [attention_of(config, shape, window, bias=bias) for window in found]
    moe = read_mixture(config, experts=60, top_k=4, hidden=1408, shared=5632)
    mlp, sparse = spec.MLP(hidden=shape.hidden, activation=moe.expert.activation), sparse_layers(config, shape.layers)
    return decoder(shape, rms(config), layers.__getitem__, lambda number: moe if sparse[number] else mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write_decoder(model) | write_windows(model) | write_mixture(model)
    used, bias = said["sliding_window"] is not None, fields.first(model, spec.Attention).bias
    return said | {"use_sliding_window": used, "qkv_bias": bias}


FAMILY = Family(
    model_type="qwen2_moe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED + expert_names("model.layers.{i}.mlp"),
    heads=decoder_heads("Qwen2Moe"),
    prefix="model.",
    ignore=IGNORE,
)
