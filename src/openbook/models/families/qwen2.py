"""Qwen 2 and 2.5 (Yang et al. 2024): biases on q, k and v; windows on the upper layers where asked for."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, classes_of_last, language, none
from openbook.models.parts import (
    BASE,
    GATED,
    IGNORE,
    PRE_NORMS,
    attention_of,
    decoder,
    read_shape,
    windows,
    write_decoder,
    write_windows,
)
from openbook.nn import spec


def read_windows(config: Config, layers: int) -> list[int | None]:
    """Windows from layer `max_window_layers` on, if `use_sliding_window`."""
    first, window = config.get("max_window_layers", 28), config.get("sliding_window", 4096)
    used = config.get("use_sliding_window", False)
    return windows(config, layers, lambda number: used and number >= first, window if used else None)


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768)
    layers = [attention_of(config, shape, window, bias=True) for window in read_windows(config, shape.layers)]
    mlp = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    return decoder(shape, spec.Norm(eps=config.get("rms_norm_eps", 1e-6)), layers.__getitem__, mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write_decoder(model) | write_windows(model)
    return said | {"use_sliding_window": said["sliding_window"] is not None}


FAMILY = Family(
    model_type="qwen2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads={"Qwen2ForCausalLM": language, "Qwen2Model": none, "Qwen2ForSequenceClassification": classes_of_last},
    prefix="model.",
    ignore=IGNORE,
)
