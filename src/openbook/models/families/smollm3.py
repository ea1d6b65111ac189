"""SmolLM3 (Bakouch et al. 2025): a Llama in which every fourth layer knows no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config
from openbook.models.families.llama import from_spec as from_llama
from openbook.models.family import Family, layers_of
from openbook.models.modern import attention, biased, decoder_heads, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape, windows, write_windows
from openbook.nn import spec


def rotated(config: Config, layers: int) -> list[bool]:
    """Which layers know positions: `no_rope_layers` has a 1 for each that does."""
    every = config.size("no_rope_layer_interval", 4)
    marks = config.raw("no_rope_layers")
    if marks is None or marks == []:
        return [(number + 1) % every != 0 for number in range(layers)]
    if not isinstance(marks, list) or len(marks) < layers or any(mark not in (0, 1) for mark in marks):
        raise ConfigError(f"`no_rope_layers` must list a 0 or 1 for each of {layers} layers ({config.where}).")
    return [bool(mark) for mark in marks[:layers]]


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768, kv_heads=4)
    turned = rotated(config, shape.layers)
    window = config.get("sliding_window", None, int)
    sliding = config.get("use_sliding_window", False) and window is not None
    found = windows(config, shape.layers, lambda i: sliding and not turned[i], window)
    layers = [attention(config, shape, own, theta=2e6, **biased(config)) for own in found]
    layers = [layer if turned[number] else replace(layer, rope=None) for number, layer in enumerate(layers)]
    ffn = mlp(config, shape, bias=config.get("mlp_bias", False))
    return decoder(shape, rms(config), layers.__getitem__, ffn)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write(model) | from_llama(model) | write_windows(model)
    marks = [int(layer.rope is not None) for layer in layers_of(model.stack, spec.Attention)]
    return said | {"no_rope_layers": marks, "use_sliding_window": said["sliding_window"] is not None}


FAMILY = Family(
    model_type="smollm3",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("SmolLM3", tied=True),
    prefix="model.",
    ignore=IGNORE,
)
