"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023): branches side by side after one norm, half of each head turned, biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic
from openbook.models.config import Config, read_rope, spell_activation
from openbook.models.family import SIZES, Family, branches_of, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec
from openbook.nn.build import check_heads


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, SIZES, context=2048)
    config.fixed("head_dim", size.head_dim, size.head_dim)
    config.raw("classifier_dropout")
    kv_heads = config.size("num_key_value_heads", size.heads)
    check_heads(size.heads, kv_heads, config.where)
    norm = classic.layer_norm(config, "layer_norm_eps")
    attention = replace(
        size.attention,
        kv_heads=kv_heads,
        rope=read_rope(config, size.head_dim, size.context or 2048, share=0.5),
        bias=True,
        out_bias=True,
        norm=norm if config.get("qk_layernorm", False) else None,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = size.mlp(config.activation("hidden_act", "gelu_new"))
    block = classic.block(attention, mlp, norm, "shared", config.get("resid_pdrop", 0.0))
    return size.model(block, norm, size.embed(config.get("embd_pdrop", 0.0)))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = layers_of(model.stack, spec.Attention)[0]
    said = classic.write_sizes(model, SIZES) | classic.write_turned(model)
    return said | {
        "num_key_value_heads": attention.kv_heads,
        "qk_layernorm": attention.norm is not None,
        "hidden_act": spell_activation(layers_of(model.stack, spec.MLP)[0].activation),
        "layer_norm_eps": classic.norm_of(model).eps,
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
    names=lambda model: BODY + classic.head_names(model, tokens="score"),
    heads=classic.heads_of("Phi", classic.biased_language, spans=False),
    prefix="model.",
    ignore=(r".*rotary_emb\.inv_freq",),
)
