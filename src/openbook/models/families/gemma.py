"""Gemma 1 (Gemma Team 2024): GeGLU, norms that store the distance from one, an embedding scaled by √dim."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.families.gemma2 import causal_only, read_norm
from openbook.models.family import Family
from openbook.models.modern import attention, biased, decoder_heads, write, write_bias
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    causal_only(config)
    config.inert("hidden_activation")  # the reference reads the other key
    shape = read_shape(config, context=8192, kv_heads=16, head_dim=256)
    layer = attention(config, shape, **biased(config))
    activation = config.activation("hidden_act", "gelu_pytorch_tanh")
    ffn = spec.MLP(hidden=shape.hidden, activation="gelu_tanh" if activation == "gelu" else activation)  # an old slip
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=float(shape.dim**0.5))
    return decoder(shape, read_norm(config), lambda _: layer, ffn, embed=embed)


def from_spec(model: spec.Model) -> dict[str, Any]:
    return write(model) | write_bias(model)


FAMILY = Family(
    model_type="gemma",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Gemma", tied=True),
    prefix="model.",
    ignore=IGNORE,
)
