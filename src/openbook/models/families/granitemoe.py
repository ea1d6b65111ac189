"""Granite with experts (IBM 2024): Mixtral's routing; embedding, residual steps, scores and logits scaled."""

from __future__ import annotations

from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import chosen, mixture_of
from openbook.models.families import granite
from openbook.models.family import Family, none
from openbook.models.modern import attention, biased, rms, write_bias
from openbook.models.names import Name, fused
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, decoder, read_shape, write_decoder
from openbook.nn import spec

MIXTURE = chosen(8, 2)


def to_spec(config: Config) -> spec.Model:
    shape, scale = read_shape(config, context=2048), config.positive("attention_multiplier", 1.0)
    layer = attention(config, shape, scale=scale, **biased(config))
    expert = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    moe = spec.MoE(expert=expert, **fields.take(config, MIXTURE))
    return decoder(shape, rms(config), lambda _: layer, moe, **granite.read_scaled(config, shape))


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = write_decoder(model) | write_bias(model) | granite.write_scaled(model)
    return said | fields.say(mixture_of(model), MIXTURE)


THEIRS, OURS = "model.layers.{i}.block_sparse_moe", f"{BLOCK}.1.layer"
EXPERTS = (
    Name(f"{THEIRS}.router.layer", f"{OURS}.router"),
    *fused(f"{THEIRS}.input_linear.weight", (f"{OURS}.experts.gate", f"{OURS}.experts.up"), (1, 1), stacked=True),
    Name(f"{THEIRS}.output_linear.weight", f"{OURS}.experts.down"),
)

FAMILY = Family(
    model_type="granitemoe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + EXPERTS,
    heads={"GraniteMoeForCausalLM": granite.scaled_language, "GraniteMoeModel": none},
    prefix="model.",
    ignore=IGNORE,
)
