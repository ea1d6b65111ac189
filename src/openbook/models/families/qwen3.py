"""Qwen 3 (Yang et al. 2025): no biases, each head's q and k normalised."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.families.qwen2 import from_spec as from_spec2
from openbook.models.families.qwen2 import read_windows
from openbook.models.family import Family, classes_of_last, language, layers_of, none
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, attention_of, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768, head_dim=128)
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-6))
    bias = config.get("attention_bias", False)
    found = read_windows(config, shape.layers)
    layers = [attention_of(config, shape, window, norm=norm, bias=bias, out_bias=bias) for window in found]
    mlp = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    return decoder(shape, norm, layers.__getitem__, mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    return from_spec2(model) | {"attention_bias": layers_of(model.stack, spec.Attention)[0].bias}


FAMILY = Family(
    model_type="qwen3",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads={"Qwen3ForCausalLM": language, "Qwen3Model": none, "Qwen3ForSequenceClassification": classes_of_last},
    prefix="model.",
    ignore=IGNORE,
)
