"""Ministral 8B (Mistral AI 2024): a Mistral whose layers have a window each, or none."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.modern import attention, decoder_heads, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape, windows, write_windows
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8)
    window = config.get("sliding_window", None, int)
    if "sliding_window" not in config.data:
        window = 4096
    found = windows(config, shape.layers, lambda _: window is not None, window)
    layers = [attention(config, shape, own) for own in found]
    return decoder(shape, rms(config), layers.__getitem__, mlp(config, shape))


def from_spec(model: spec.Model) -> dict[str, Any]:
    return write(model) | write_windows(model)


FAMILY = Family(
    model_type="ministral",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Ministral"),
    prefix="model.",
    ignore=IGNORE,
)
