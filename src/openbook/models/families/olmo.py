"""OLMo 1 (Groeneveld et al. 2024): a Llama whose LayerNorm has no parameters, and whose q, k and v may be clipped."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, layers_of
from openbook.models.modern import attention, biased, decoder_heads, mlp, write, write_bias
from openbook.models.parts import BASE, GATED, IGNORE, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    layer = attention(config, shape, clip=config.get("clip_qkv", None, float), **biased(config))
    norm = spec.Norm(kind="layer", eps=1e-5, weight=False)
    return decoder(shape, norm, lambda _: layer, mlp(config, shape))


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write(model) | write_bias(model) | {"clip_qkv": layers_of(model.stack, spec.Attention)[0].clip}
    del said["rms_norm_eps"]
    return said


FAMILY = Family(
    model_type="olmo",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + GATED,
    heads=decoder_heads("Olmo", tokens=False),
    prefix="model.",
    ignore=IGNORE,
)
