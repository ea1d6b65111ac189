"""Seed-OSS (ByteDance Seed 2025): a Llama with biases on q, k and v, and dropout."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, branches_of, layers_of
from openbook.models.modern import attention, decoder_heads, mlp, rms, write, write_bias
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=524288, kv_heads=8, head_dim=128)
    config.data = {"attention_dropout": 0.1, **config.data}  # what silence means
    bias, out = config.get("attention_bias", True), config.get("attention_out_bias", False)
    layer = attention(config, shape, bias=bias, out_bias=out)
    ffn = mlp(config, shape, bias=config.get("mlp_bias", False))
    return decoder(shape, rms(config), lambda _: layer, ffn, dropout=config.get("residual_dropout", 0.1))


def from_spec(model: spec.Model) -> dict[str, Any]:
    return (
        write(model)
        | write_bias(model)
        | {
            "attention_out_bias": layers_of(model.stack, spec.Attention)[0].out_bias,
            "mlp_bias": layers_of(model.stack, spec.MLP)[0].bias,
            "residual_dropout": branches_of(model.stack)[0].dropout,
        }
    )


FAMILY = Family(
    model_type="seed_oss",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("SeedOss"),
    prefix="model.",
    ignore=IGNORE,
)
