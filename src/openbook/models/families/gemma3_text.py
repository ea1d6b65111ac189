"""Gemma 3, text (Gemma Team 2025): q and k normalised, not capped; most layers have windows."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config, read_rope, write_rope
from openbook.models.families.gemma2 import attention_of, capped_language, causal_only, read_mlp, read_norm
from openbook.models.families.gemma2 import from_spec as from_spec2
from openbook.models.family import Family, layers_of, none
from openbook.models.parts import BASE, BOTH_NORMS, GATED, IGNORE, decoder, read_shape, windows
from openbook.nn import spec


def read_ropes(config: Config, head_dim: int, context: int) -> dict[bool, spec.Rope]:
    """The rotary positions of full layers (False) and of windowed ones (True), old and new spelling."""
    if config.has("rope_parameters"):
        local = read_rope(config, head_dim, context, "sliding_attention", 1e4)
        return {False: read_rope(config, head_dim, context, "full_attention", 1e6), True: local}
    local = spec.Rope(dim=head_dim, theta=config.get("rope_local_base_freq", 1e4))
    return {False: read_rope(config, head_dim, context, theta=1e6), True: local}


def to_spec(config: Config) -> spec.Model:
    causal_only(config)
    shape = read_shape(config, context=131072, kv_heads=4, head_dim=256)
    ropes = read_ropes(config, shape.head_dim, shape.context)
    norm = read_norm(config)
    every = config.get("sliding_window_pattern", 6)
    found = windows(config, shape.layers, lambda i: (i + 1) % every != 0, config.get("sliding_window", 4096))
    cap = config.get("attn_logit_softcapping", None, float)
    config.raw("final_logit_softcapping")
    layers = [attention_of(config, shape, w, ropes[w is not None], norm=norm, softcap=cap) for w in found]
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=float(shape.dim**0.5))
    return decoder(shape, norm, layers.__getitem__, read_mlp(config, shape.hidden), "both", embed)


def from_spec(model: spec.Model) -> dict[str, Any]:
    ropes = {}
    for layer in layers_of(model.stack, spec.Attention):
        if layer.rope is not None:
            kind = "full_attention" if layer.pattern.window is None else "sliding_attention"
            ropes[kind] = write_rope(layer.rope, layer.head_dim)
    return from_spec2(model) | {"rope_parameters": ropes}


FAMILY = Family(
    model_type="gemma3_text",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + BOTH_NORMS + GATED,
    heads={"Gemma3ForCausalLM": lambda config: capped_language(config, None), "Gemma3TextModel": none},
    prefix="model.",
    ignore=IGNORE,
)
