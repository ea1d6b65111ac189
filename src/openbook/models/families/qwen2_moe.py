"""Qwen 1.5 and 2 with experts (Yang et al. 2024 §2.2.2): a gated shared expert beside those a router chooses."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.experts import expert_names, mixture_of, sparse_layers, write_sparse
from openbook.models.family import Family, layers_of
from openbook.models.modern import decoder_heads
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
    return spec.MoE(
        experts=config.size("num_experts", config.size("num_local_experts", experts)),
        top_k=config.size("num_experts_per_tok", top_k),
        expert=spec.MLP(hidden=config.size("moe_intermediate_size", hidden), activation=activation),
        routing=spec.Routing(renormalise=config.get("norm_topk_prob", renormalise)),
        shared=None if width is None else spec.MLP(hidden=width, activation=activation),
        shared_gate=width is not None,
        balance=config.get("router_aux_loss_coef", 0.001),
    )


def write_mixture(model: spec.Model) -> dict[str, Any]:
    """The keys that `read_mixture` reads."""
    moe = mixture_of(model)
    return write_sparse(model) | {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.routing.renormalise,
        "router_aux_loss_coef": moe.balance,
    }


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768)
    used, most = config.get("use_sliding_window", False), config.get("max_window_layers", 28)
    window = config.get("sliding_window", 4096) if used else config.raw("sliding_window") and None
    found = windows(config, shape.layers, lambda number: used and number % 2 == 0 and number < most, window)
    bias = config.get("qkv_bias", True)
    layers = [attention_of(config, shape, window, bias=bias) for window in found]
    moe = read_mixture(config, experts=60, top_k=4, hidden=1408, shared=5632)
    mlp, sparse = spec.MLP(hidden=shape.hidden, activation=moe.expert.activation), sparse_layers(config, shape.layers)
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-6))
    return decoder(shape, norm, layers.__getitem__, lambda number: moe if sparse[number] else mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write_decoder(model) | write_windows(model) | write_mixture(model)
    shared = mixture_of(model).shared
    return said | {
        "use_sliding_window": said["sliding_window"] is not None,
        "qkv_bias": layers_of(model.stack, spec.Attention)[0].bias,
        "shared_expert_intermediate_size": 1 if shared is None else shared.hidden,
    }


FAMILY = Family(
    model_type="qwen2_moe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED + expert_names("model.layers.{i}.mlp"),
    heads=decoder_heads("Qwen2Moe"),
    prefix="model.",
    ignore=IGNORE,
)
