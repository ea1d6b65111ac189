"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023): branches side by side after one norm, half of each head turned, biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic, fields
from openbook.models.config import Config, read_rope
from openbook.models.family import SIZES, Family
from openbook.models.names import Name
from openbook.models.parts import block_names
from openbook.nn import spec

TABLE: fields.Table = {
    spec.Attention: {"dropout": ("attention_dropout", 0.0)},
    spec.MLP: {"activation": ("hidden_act", "gelu_new")},
    spec.Norm: {"eps": ("layer_norm_eps", 1e-5)},
    spec.Branch: {"dropout": ("resid_pdrop", 0.0)},
    spec.Embed: {"dropout": ("embd_pdrop", 0.0)},
}


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, SIZES, context=2048), fields.read(config, TABLE)
    config.fixed("head_dim", size.head_dim, size.head_dim)
    config.inert("classifier_dropout")
    rope = read_rope(config, size.head_dim, size.context or 2048, share=0.5)
    each = spec.Norm(kind="layer", bias=True, **said[spec.Norm]) if config.get("qk_layernorm", False) else None
    shape = replace(size.attention, rope=rope, bias=True, out_bias=True, norm=each)
    attention = replace(shape, kv_heads=size.kv_heads(config), **said[spec.Attention])
    return classic.plain(size, attention, said, "shared")


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = fields.first(model, spec.Attention)
    own = {
        "num_key_value_heads": attention.kv_heads,
        "qk_layernorm": attention.norm is not None,
        "tie_word_embeddings": model.language is not None and model.language.tied,
    }
    return classic.write_sizes(model, SIZES) | classic.write_turned(model) | fields.write(model, TABLE) | own


L = "model.layers.{i}."
BODY = (
    Name("model.embed_tokens", "embed.tokens"),
    Name("model.final_layernorm", "stack.final_norm"),
    *block_names(L, norm="input_layernorm", up="mlp.fc1", down="mlp.fc2"),
    *block_names(f"{L}self_attn.", q="q_proj", k="k_proj", v="v_proj", out="dense"),
    *block_names(f"{L}self_attn.", q_norm="q_layernorm", k_norm="k_layernorm"),
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
