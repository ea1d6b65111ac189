"""OLMo 2 (OLMo et al. 2024): norms of what is added rather than of what is read, q and k normalised over all heads."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.modern import AFTER_NORMS, attention, biased, decoder_heads, mlp, rms, write, write_bias
from openbook.models.parts import BASE, GATED, IGNORE, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    norm = rms(config, 1e-5)
    layer = attention(config, shape, norm=spec.QueryKeyNorm(norm=norm, over="width"), **biased(config))
    return decoder(shape, norm, lambda _: layer, mlp(config, shape), "after")


def from_spec(model: spec.Model) -> dict[str, Any]:
    return write(model) | write_bias(model)


FAMILY = Family(
    model_type="olmo2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + AFTER_NORMS + GATED,
    heads=decoder_heads("Olmo2", tokens=False),
    prefix="model.",
    ignore=IGNORE,
)
