"""Granite 3 (IBM 2024): a Llama with a multiplier at the embedding, the scores, every residual step and the logits."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.families.llama import from_spec as from_llama
from openbook.models.family import Family, Heads, branches_of, layers_of
from openbook.models.modern import attention, biased, decoder_heads, inverse, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def scaled_language(config: Config) -> Heads:
    """The language head, its logits divided by `logits_scaling`."""
    scale = 1 / config.positive("logits_scaling", 1.0)
    return (spec.Language(tied=config.get("tie_word_embeddings", False), scale=scale),)


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    layer = attention(config, shape, scale=config.positive("attention_multiplier", 1.0), **biased(config))
    ffn = mlp(config, shape, bias=config.get("mlp_bias", False))
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=config.get("embedding_multiplier", 1.0))
    step = config.get("residual_multiplier", 1.0)
    return decoder(shape, rms(config), lambda _: layer, ffn, embed=embed, scale=step)


def from_spec(model: spec.Model) -> dict[str, Any]:
    layer: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    return (
        write(model)
        | from_llama(model)
        | {
            "embedding_multiplier": model.embed.scale,
            "attention_multiplier": layer.head_dim**-0.5 if layer.scale is None else layer.scale,
            "residual_multiplier": branches_of(model.stack)[0].scale,
            "logits_scaling": 1.0 if model.language is None else inverse(model.language.scale),
        }
    )


FAMILY = Family(
    model_type="granite",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Granite", tokens=False, last=False) | {"GraniteForCausalLM": scaled_language},
    prefix="model.",
    ignore=IGNORE,
)
