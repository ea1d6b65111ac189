"""GLM-4 (Team GLM 2024): half of each head turned, in neighbouring pairs; biases on q, k and v; gate and up fused."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.modern import FUSED_GATED, attention, decoder_heads, mlp, rms, write, write_bias, write_share
from openbook.models.parts import BASE, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config, place: spec.Place = "pre") -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=2, head_dim=128)
    layer = attention(config, shape, share=0.5, neighbours=True, bias=config.get("attention_bias", True))
    return decoder(shape, rms(config, 1.5625e-7), lambda _: layer, mlp(config, shape), place)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write(model)
    return said | write_bias(model) | write_share(model, said)


FAMILY = Family(
    model_type="glm",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + FUSED_GATED,
    heads=decoder_heads("Glm"),
    prefix="model.",
    ignore=IGNORE,
)
