"""EXAONE 4 (LG AI Research 2025): norms of what is added; each layer has a window, or else no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, layers_of
from openbook.models.modern import AFTER_NORMS, attention, decoder_heads, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, decoder, read_shape, windows, write_windows
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048, kv_heads=32)
    window = config.get("sliding_window", None, int) if "sliding_window" in config.data else 4096
    every = config.raw(
        "sliding_window_pattern", 4
    )  # may be a word such as LLLG beside `layer_types`, which then counts
    if not config.has("layer_types") and window is not None:
        every = config.size("sliding_window_pattern", 4)
    norm = rms(config, 1e-5)
    found = windows(config, shape.layers, lambda i: window is not None and (i + 1) % every != 0, window)
    layers = [attention(config, shape, own, norm=norm) for own in found]
    if window is not None:
        layers = [layer if layer.pattern.window else replace(layer, rope=None) for layer in layers]
    return decoder(shape, norm, layers.__getitem__, mlp(config, shape), "after")


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write(model) | write_windows(model)
    if any(layer.rope is None for layer in layers_of(model.stack, spec.Attention)):
        said["sliding_window"] = said["sliding_window"] or 4096  # any number takes the positions of full layers away
    return said


FAMILY = Family(
    model_type="exaone4",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + AFTER_NORMS + GATED,
    heads=decoder_heads("Exaone4"),
    prefix="model.",
    ignore=IGNORE,
)
