"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): branches side by side, a part of each head turned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic
from openbook.models.config import Config, read_rope, spell_activation
from openbook.models.family import SIZES, Family, language, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, SIZES, context=2048)
    config.fixed("is_decoder", False, False)
    for inert in ("classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
        config.raw(inert)
    bias, drop = config.get("attention_bias", True), config.get("hidden_dropout", 0.0)
    base, share = config.get("rotary_emb_base", 1e4), config.get("rotary_pct", 0.25)  # the old spelling
    attention = replace(
        size.attention,
        rope=read_rope(config, size.head_dim, size.context or 2048, theta=base, share=share),
        bias=bias,
        out_bias=bias,
        dropout=config.get("attention_dropout", 0.0),
    )
    norm, mlp = classic.layer_norm(config, "layer_norm_eps"), size.mlp(config.activation("hidden_act", "gelu"))
    way: classic.Way = "each" if config.get("use_parallel_residual", True) else "pre"
    return size.model(classic.block(attention, mlp, norm, way, drop), norm, size.embed(drop))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = layers_of(model.stack, spec.Attention)[0]
    said = classic.write_sizes(model, SIZES) | classic.write_turned(model)
    return said | {
        "hidden_act": spell_activation(layers_of(model.stack, spec.MLP)[0].activation),
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "hidden_dropout": model.embed.dropout,
        "layer_norm_eps": classic.norm_of(model).eps,
        "use_parallel_residual": classic.way_of(model) == "each",
    }


L = "gpt_neox.layers.{i}."


def names(model: spec.Model) -> tuple[Name, ...]:
    heads = layers_of(model.stack, spec.Attention)[0].heads
    return (
        Name("gpt_neox.embed_in", "embed.tokens"),
        Name("gpt_neox.final_layer_norm", "stack.final_norm"),
        Name(f"{L}input_layernorm", f"{BLOCK}.0.norm"),
        Name(f"{L}post_attention_layernorm", f"{BLOCK}.1.norm"),
        *fused(f"{L}attention.query_key_value", classic.QKV, (1, 1, 1), heads),
        Name(f"{L}attention.dense", f"{BLOCK}.0.layer.out"),
        Name(f"{L}mlp.dense_h_to_4h", f"{BLOCK}.1.layer.up"),
        Name(f"{L}mlp.dense_4h_to_h", f"{BLOCK}.1.layer.down"),
        *classic.head_names(model, "embed_out"),
    )


FAMILY = Family(
    model_type="gpt_neox",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=classic.heads_of("GPTNeoX", language),
    prefix="gpt_neox.",
    ignore=(r".*attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
)
