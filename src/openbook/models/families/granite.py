"""Granite 3 (IBM 2024): a Llama with a multiplier at the embedding, the scores, every residual step and the logits."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.families.llama import from_spec as from_llama
from openbook.models.family import Family, Heads
from openbook.models.fields import first
from openbook.models.modern import attention, biased, decoder_heads, inverse, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, Shape, decoder, read_shape
from openbook.nn import spec


def scaled_language(config: Config) -> Heads:
    """The language head, its logits divided by `logits_scaling`."""
    scale = 1 / config.positive("logits_scaling", 1.0)
    return (spec.Language(tied=config.get("tie_word_embeddings", False), scale=scale),)


def read_scaled(config: Config, shape: Shape) -> dict[str, Any]:
    """The multipliers of embedding and branches, as `decoder` takes them."""
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=config.get("embedding_multiplier", 1.0))
    return {"embed": embed, "scale": config.get("residual_multiplier", 1.0)}


def write_scaled(model: spec.Model) -> dict[str, Any]:
    """All four multipliers."""
    layer = first(model, spec.Attention)
    return {
        "embedding_multiplier": model.embed.scale,
        "attention_multiplier": layer.head_dim**-0.5 if layer.scale is None else layer.scale,
        "residual_multiplier": first(model, spec.Branch).scale,
        "logits_scaling": 1.0 if model.language is None else inverse(model.language.scale),
    }


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    layer = attention(config, shape, scale=config.positive("attention_multiplier", 1.0), **biased(config))
    ffn = mlp(config, shape, bias=config.get("mlp_bias", False))
    return decoder(shape, rms(config), lambda _: layer, ffn, **read_scaled(config, shape))


FAMILY = Family(
    model_type="granite",
    to_spec=to_spec,
    from_spec=lambda model: write(model) | from_llama(model) | write_scaled(model),
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Granite", tokens=False, last=False) | {"GraniteForCausalLM": scaled_language},
    prefix="model.",
    ignore=IGNORE,
)
