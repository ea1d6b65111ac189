"""Nemotron-4, Minitron (Parmar et al. 2024): LayerNorm around one, squared relus, half of each head turned."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.families.llama import from_spec as from_llama
from openbook.models.family import Family
from openbook.models.modern import attention, biased, decoder_heads, mlp, write, write_share
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=4096)
    layer = attention(config, shape, share=0.5, **biased(config))
    ffn = mlp(config, shape, "relu2", gated=False, bias=config.get("mlp_bias", False))
    norm = spec.Norm(kind="layer", eps=config.get("norm_eps", 1e-5), bias=True, offset=1.0)
    return decoder(shape, norm, lambda _: layer, ffn)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = from_llama(model) | write(model, "norm_eps")
    del said["rms_norm_eps"]
    return said | write_share(model, said)


FAMILY = Family(
    model_type="nemotron",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Nemotron"),
    prefix="model.",
    ignore=IGNORE,
)
