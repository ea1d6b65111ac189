"""Mistral (Jiang et al. 2023): a Llama whose attention looks back over a window."""

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
    write_decoder,
    write_windows,
)
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8)
    window = config.get("sliding_window", None, int)
    if "sliding_window" not in config.data:
        window = 4096  # what a silent config.json has always meant; null means none
    attention = attention_of(config, shape, window)
    mlp = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    return decoder(shape, spec.Norm(eps=config.get("rms_norm_eps", 1e-6)), lambda _: attention, mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    return write_decoder(model) | {"sliding_window": write_windows(model)["sliding_window"]}


FAMILY = Family(
    model_type="mistral",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads={"MistralForCausalLM": language, "MistralModel": none, "MistralForSequenceClassification": classes_of_last},
    prefix="model.",
    ignore=IGNORE,
)
