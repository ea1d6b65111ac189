"""gpt-oss (OpenAI 2025): sinks, windows on every other layer, experts with biases and a clipped, shifted gate."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.experts import mixture_of
from openbook.models.family import CannotSay, Family, layers_of
from openbook.models.modern import decoder_heads
from openbook.models.names import Name, Part
from openbook.models.parts import (
    BASE,
    BLOCK,
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

YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def to_spec(config: Config) -> spec.Model:
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        config.data["rope_parameters"] = YARN | {"rope_theta": config.get("rope_theta", 150000.0)}
    shape = read_shape(config, context=131072, kv_heads=8, head_dim=64)
    found = windows(config, shape.layers, lambda number: number % 2 == 0, config.get("sliding_window", 128))
    bias = config.get("attention_bias", True)
    layers = [attention_of(config, shape, window, bias=bias, out_bias=bias, sinks=True) for window in found]
    config.fixed("swiglu_alpha", 1.702, 1.702)
    config.fixed("hidden_act", "silu", "silu")  # of a gate with that factor
    for inert in ("initial_context_length", "experts_per_token"):  # other words for what is read above and below
        config.raw(inert)
    limit = config.get("swiglu_limit", 7.0)
    moe = spec.MoE(
        experts=config.size("num_local_experts", config.size("num_experts", 128)),
        top_k=config.size("num_experts_per_tok", config.size("experts_per_token", 4)),
        expert=spec.MLP(hidden=shape.hidden, activation="quick_gelu", bias=True, limit=limit, offset=1.0),
        routing=spec.Routing(bias=True),
        balance=config.get("router_aux_loss_coef", 0.001),
    )
    return decoder(shape, spec.Norm(eps=config.get("rms_norm_eps", 1e-5)), layers.__getitem__, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    moe, attention = mixture_of(model), layers_of(model.stack, spec.Attention)[0]
    if moe.expert.activation != "quick_gelu" or moe.expert.limit is None:
        raise CannotSay("its experts have no clipped gate")
    said = write_decoder(model) | write_windows(model)
    return said | {
        "hidden_act": "silu",
        "swiglu_alpha": 1.702,
        "swiglu_limit": moe.expert.limit,
        "attention_bias": attention.bias,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance,
    }


def names(model: spec.Model) -> tuple[Name, ...]:
    theirs, ours = "model.layers.{i}.mlp", f"{BLOCK}.1.layer"
    hidden = mixture_of(model).expert.hidden
    fused = [
        Name(f"{theirs}.experts.gate_up_proj", f"{ours}.experts.{part}", True, Part(n, (1, 1), hidden), stacked=True)
        for n, part in enumerate(("gate", "up"))
    ]
    biases = [
        Name(f"{theirs}.experts.gate_up_proj_bias", f"{ours}.experts.{part}_bias", False, entry.part, stacked=True)
        for part, entry in zip(("gate", "up"), fused, strict=True)
    ]
    return (
        *BASE,
        *PRE_NORMS,
        Name("model.layers.{i}.self_attn.sinks", f"{BLOCK}.0.layer.sinks"),
        Name(f"{theirs}.router", f"{ours}.router"),
        *fused,
        *biases,
        Name(f"{theirs}.experts.down_proj", f"{ours}.experts.down", True, stacked=True),
        Name(f"{theirs}.experts.down_proj_bias", f"{ours}.experts.down_bias"),
    )


FAMILY = Family(
    model_type="gpt_oss",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=decoder_heads("GptOss"),
    prefix="model.",
    ignore=IGNORE,
)
