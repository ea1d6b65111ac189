"""Cohere's Command R (2024): attention and feed-forward side by side (Chowdhery et al. 2022), logits scaled."""

from __future__ import annotations

from typing import Any

from openbook.models.classic import layer_norm
from openbook.models.config import Config
from openbook.models.family import Family, Heads, layers_of, none
from openbook.models.modern import PARALLEL_NORM, attention, biased, mlp, write, write_bias
from openbook.models.parts import BASE, GATED, IGNORE, decoder, read_shape
from openbook.nn import spec


def scaled_language(config: Config) -> Heads:
    """The language head, its logits multiplied by `logit_scale`."""
    scale = config.get("logit_scale", 0.0625)
    return (spec.Language(tied=config.get("tie_word_embeddings", True), scale=scale),)


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=8192)
    norm = layer_norm(config, "layer_norm_eps", bias=False)
    normed = spec.QueryKeyNorm(norm=norm, over="heads") if config.get("use_qk_norm", False) else None
    layer = attention(config, shape, theta=5e5, neighbours=True, norm=normed, **biased(config))
    return decoder(shape, norm, lambda _: layer, mlp(config, shape), "plain")


def from_spec(model: spec.Model) -> dict[str, Any]:
    scale = {} if model.language is None else {"logit_scale": model.language.scale}
    normed = layers_of(model.stack, spec.Attention)[0].norm is not None
    return write(model, "layer_norm_eps") | write_bias(model) | scale | {"use_qk_norm": normed}


FAMILY = Family(
    model_type="cohere",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PARALLEL_NORM + GATED,
    heads={"CohereForCausalLM": scaled_language, "CohereModel": none},
    prefix="model.",
    ignore=IGNORE,
)
