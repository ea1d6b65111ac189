"""Cohere's Command A and R7B (2024): Command R with windows, and layers without positions where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models.classic import layer_norm
from openbook.models.config import Config
from openbook.models.families.cohere import from_spec as from_spec1
from openbook.models.families.cohere import scaled_language
from openbook.models.family import Family, none
from openbook.models.modern import PARALLEL_NORM, attention, biased, mlp
from openbook.models.parts import BASE, GATED, IGNORE, decoder, read_shape, windows, write_windows
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=8192)
    every = config.get("sliding_window_pattern", 4)
    found = windows(config, shape.layers, lambda i: (i + 1) % every != 0, config.get("sliding_window", 4096))
    layers = [attention(config, shape, window, neighbours=True, **biased(config)) for window in found]
    layers = [layer if layer.pattern.window else replace(layer, rope=None) for layer in layers]
    return decoder(
        shape, layer_norm(config, "layer_norm_eps", bias=False), layers.__getitem__, mlp(config, shape), "plain"
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = from_spec1(model) | write_windows(model)
    del said["use_qk_norm"]
    return said


FAMILY = Family(
    model_type="cohere2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PARALLEL_NORM + GATED,
    heads={"Cohere2ForCausalLM": scaled_language, "Cohere2Model": none},
    prefix="model.",
    ignore=IGNORE,
)
