"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): branches side by side, a part of each head turned."""

from __future__ import annotations

from typing import Any

from openbook.models.classic import (
    QKV,
    block,
    head_names,
    heads_of,
    layer_norm,
    norm_of,
    read_sizes,
    way_of,
    write_sizes,
)
from openbook.models.config import Config, read_rope, share_of, spell_activation, write_rope
from openbook.models.family import SIZES, CannotSay, Family, language, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    size = read_sizes(config, SIZES, context=2048)
    config.fixed("is_decoder", False, False)
    for inert in ("classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
        config.raw(inert)
    bias, drop = config.get("attention_bias", True), config.get("hidden_dropout", 0.0)
    base, share = config.get("rotary_emb_base", 1e4), config.get("rotary_pct", 0.25)  # the old spelling
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.head_dim,
        rope=read_rope(config, size.head_dim, size.context or 2048, theta=base, share=share),
        bias=bias,
        out_bias=bias,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = spec.MLP(hidden=size.hidden, activation=config.activation("hidden_act", "gelu"), gated=False, bias=True)
    norm = layer_norm(config, "layer_norm_eps")
    one = block(attention, mlp, norm, "each" if config.get("use_parallel_residual", True) else "pre", drop)
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, dropout=drop),
        stack=spec.Stack(dim=size.dim, blocks=(one,) * size.layers, final_norm=norm),
        heads=(),
        context=size.context,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    if attention.rope is None:
        raise CannotSay("it needs rotary positions")
    rope = write_rope(attention.rope, attention.head_dim)
    return write_sizes(model, SIZES) | {
        "rope_parameters": rope | {"partial_rotary_factor": share_of(attention.rope, attention.head_dim)},
        "hidden_act": spell_activation(mlp.activation),
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "hidden_dropout": model.embed.dropout,
        "layer_norm_eps": norm_of(model).eps,
        "use_parallel_residual": way_of(model) == "each",
    }


L = "gpt_neox.layers.{i}."


def names(model: spec.Model) -> tuple[Name, ...]:
    heads = layers_of(model.stack, spec.Attention)[0].heads
    return (
        Name("gpt_neox.embed_in", "embed.tokens"),
        Name("gpt_neox.final_layer_norm", "stack.final_norm"),
        Name(f"{L}input_layernorm", f"{BLOCK}.0.norm"),
        Name(f"{L}post_attention_layernorm", f"{BLOCK}.1.norm"),
        *fused(f"{L}attention.query_key_value", QKV, (1, 1, 1), heads),
        Name(f"{L}attention.dense", f"{BLOCK}.0.layer.out"),
        Name(f"{L}mlp.dense_h_to_4h", f"{BLOCK}.1.layer.up"),
        Name(f"{L}mlp.dense_4h_to_h", f"{BLOCK}.1.layer.down"),
        *head_names(model, "embed_out"),
    )


FAMILY = Family(
    model_type="gpt_neox",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=heads_of("GPTNeoX", language),
    prefix="gpt_neox.",
    ignore=(r".*attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
)
