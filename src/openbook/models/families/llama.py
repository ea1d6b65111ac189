"""Llama 1 to 3 and their like (Touvron et al. 2023; Dubey et al. 2024): rotary positions, RMSNorm, SwiGLU."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config, read_rope
from openbook.models.family import Family, classes_of_last, language, layers_of, none
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape, write_decoder
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    bias = config.get("attention_bias", False)
    attention = spec.Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope=read_rope(config, shape.head_dim, shape.context),
        bias=bias,
        out_bias=bias,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = spec.MLP(
        hidden=shape.hidden, activation=config.activation("hidden_act", "silu"), bias=config.get("mlp_bias", False)
    )
    return decoder(shape, spec.Norm(eps=config.get("rms_norm_eps", 1e-6)), lambda _: attention, mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    return write_decoder(model) | {"attention_bias": attention.bias, "mlp_bias": mlp.bias}


FAMILY = Family(
    model_type="llama",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads={"LlamaForCausalLM": language, "LlamaModel": none, "LlamaForSequenceClassification": classes_of_last},
    prefix="model.",
    ignore=IGNORE,
)
