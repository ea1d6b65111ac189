"""Gemma 2 (Gemma Team 2024): norms before and after, soft-capped scores and logits, every other layer a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope
from openbook.models.family import Family, Heads, none
from openbook.models.fields import first
from openbook.models.modern import biased, write_bias
from openbook.models.parts import (
    BASE,
    BOTH_NORMS,
    GATED,
    IGNORE,
    Shape,
    decoder,
    read_shape,
    windows,
    write_decoder,
    write_windows,
)
from openbook.nn import spec


def causal_only(config: Config) -> None:
    """The bidirectional variant is another model."""
    if config.get("use_bidirectional_attention", False):
        raise ConfigError(f"`use_bidirectional_attention` is not known here ({config.where}); only false is.")


def read_norm(config: Config) -> spec.Norm:
    """The published weight is the distance from one."""
    return spec.Norm(eps=config.get("rms_norm_eps", 1e-6), offset=1.0)


def read_mlp(config: Config, hidden: int) -> spec.MLP:
    """GeGLU; the activation has an old spelling."""
    key = config.spelled("hidden_activation", "hidden_act")
    name = config.activation(key, "gelu_pytorch_tanh")
    return spec.MLP(hidden=hidden, activation="gelu_tanh" if key == "hidden_act" else name)


def attention_of(config: Config, shape: Shape, window: int | None, rope: spec.Rope, **special: Any) -> spec.Attention:
    """One layer's attention; `special` is what the family adds."""
    return replace(
        shape.attention,
        pattern=spec.Pattern(window=window),
        rope=rope,
        scale=config.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        dropout=config.get("attention_dropout", 0.0),
        **biased(config),
        **special,
    )


def capped_language(config: Config, default: float | None) -> Heads:
    """The language head with its soft cap; `default` is what silence means."""
    silent = "final_logit_softcapping" not in config.data
    cap = default if silent else config.get("final_logit_softcapping", None, float)
    return (spec.Language(tied=config.get("tie_word_embeddings", True), softcap=cap),)


def to_spec(config: Config) -> spec.Model:
    causal_only(config)
    shape = read_shape(config, context=8192, kv_heads=4, head_dim=256)
    rope = read_rope(config, shape.head_dim, shape.context)
    cap = config.get("attn_logit_softcapping", None, float) if "attn_logit_softcapping" in config.data else 50.0
    config.raw("final_logit_softcapping")
    found = windows(config, shape.layers, lambda i: i % 2 == 0, config.get("sliding_window", 4096))
    layers = [attention_of(config, shape, window, rope, softcap=cap) for window in found]
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=float(shape.dim**0.5))
    return decoder(shape, read_norm(config), layers.__getitem__, read_mlp(config, shape.hidden), "both", embed)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, said = first(model, spec.Attention), write_windows(model)
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    own = {
        "sliding_window": said["sliding_window"] or 4096,  # the reference wants a number where no layer has one
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": model.language.softcap if model.language else None,
    }
    return write_decoder(model, "hidden_activation") | said | write_bias(model) | own


FAMILY = Family(
    model_type="gemma2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + BOTH_NORMS + GATED,
    heads={"Gemma2ForCausalLM": lambda config: capped_language(config, 30.0), "Gemma2Model": none},
    prefix="model.",
    ignore=IGNORE,
)
