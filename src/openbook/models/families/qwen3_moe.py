"""Qwen 3 with experts (Yang et al. 2025): Qwen 3's attention, no shared expert."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.experts import expert_names, sparse_layers
from openbook.models.families.qwen2_moe import read_mixture, write_mixture
from openbook.models.family import Family, layers_of
from openbook.models.modern import decoder_heads
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, attention_of, decoder, read_shape, write_decoder
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768, kv_heads=4)
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-6))
    window = config.get("sliding_window", 4096)
    config.inert("max_window_layers")  # inert: all layers have the window, or none
    bias = config.get("attention_bias", False)
    used = window if config.get("use_sliding_window", False) else None
    attention = attention_of(config, shape, used, norm=norm, bias=bias, out_bias=bias)
    moe = read_mixture(config, experts=128, top_k=8, hidden=768, shared=None)
    mlp, sparse = spec.MLP(hidden=shape.hidden, activation=moe.expert.activation), sparse_layers(config, shape.layers)
    return decoder(shape, norm, lambda _: attention, lambda number: moe if sparse[number] else mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = layers_of(model.stack, spec.Attention)[0]
    window = attention.pattern.window
    said = write_decoder(model) | write_mixture(model) | {"attention_bias": attention.bias}
    return said | {"use_sliding_window": window is not None, "sliding_window": window}


FAMILY = Family(
    model_type="qwen3_moe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED + expert_names("model.layers.{i}.mlp"),
    heads=decoder_heads("Qwen3Moe"),
    prefix="model.",
    ignore=IGNORE,
)
