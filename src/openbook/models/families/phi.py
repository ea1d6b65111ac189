"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023): branches side by side after one norm, half of each head turned, biases."""

from __future__ import annotations

from typing import Any

from openbook.models.classic import (
    biased_language,
    block,
    head_names,
    heads_of,
    layer_norm,
    norm_of,
    read_sizes,
    write_sizes,
)
from openbook.models.config import Config, read_rope, share_of, spell_activation, write_rope
from openbook.models.family import SIZES, CannotSay, Family, branches_of, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec
from openbook.nn.build import check_heads


def to_spec(config: Config) -> spec.Model:
    size = read_sizes(config, SIZES, context=2048)
    config.fixed("head_dim", size.head_dim, size.head_dim)
    config.raw("classifier_dropout")
    kv_heads = config.size("num_key_value_heads", size.heads)
    check_heads(size.heads, kv_heads, config.where)
    norm = layer_norm(config, "layer_norm_eps")
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=kv_heads,
        head_dim=size.head_dim,
        rope=read_rope(config, size.head_dim, size.context or 2048, share=0.5),
        bias=True,
        out_bias=True,
        norm=norm if config.get("qk_layernorm", False) else None,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = spec.MLP(hidden=size.hidden, activation=config.activation("hidden_act", "gelu_new"), gated=False, bias=True)
    one = block(attention, mlp, norm, "shared", config.get("resid_pdrop", 0.0))
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, dropout=config.get("embd_pdrop", 0.0)),
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
        "num_key_value_heads": attention.kv_heads,
        "rope_parameters": rope | {"partial_rotary_factor": share_of(attention.rope, attention.head_dim)},
        "qk_layernorm": attention.norm is not None,
        "hidden_act": spell_activation(mlp.activation),
        "layer_norm_eps": norm_of(model).eps,
        "resid_pdrop": branches_of(model.stack)[0].dropout,
        "embd_pdrop": model.embed.dropout,
        "attention_dropout": attention.dropout,
        "tie_word_embeddings": model.language is not None and model.language.tied,
    }


L = "model.layers.{i}."
BODY = (
    Name("model.embed_tokens", "embed.tokens"),
    Name("model.final_layernorm", "stack.final_norm"),
    Name(f"{L}input_layernorm", "stack.blocks.{i}.norm"),
    *(Name(f"{L}self_attn.{n}_proj", f"{BLOCK}.0.layer.{n}") for n in "qkv"),
    *(Name(f"{L}self_attn.{n}_layernorm", f"{BLOCK}.0.layer.{n}_norm") for n in "qk"),
    Name(f"{L}self_attn.dense", f"{BLOCK}.0.layer.out"),
    Name(f"{L}mlp.fc1", f"{BLOCK}.1.layer.up"),
    Name(f"{L}mlp.fc2", f"{BLOCK}.1.layer.down"),
)
FAMILY = Family(
    model_type="phi",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: BODY + head_names(model, tokens="score"),
    heads=heads_of("Phi", biased_language, spans=False),
    prefix="model.",
    ignore=(r".*rotary_emb\.inv_freq",),
)
