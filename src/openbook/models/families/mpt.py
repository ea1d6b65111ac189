"""MPT (MosaicML 2023): ALiBi, no biases anywhere, q, k and v clipped if need be.

Its `attn_config` is read as its makers' code reads it; the reference ignores `alibi_bias_max`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec

KEYS = {
    "vocab": "vocab_size",
    "dim": "d_model",
    "layers": "n_layers",
    "heads": "n_heads",
    "context": "max_seq_len",
    "tied": "tie_word_embeddings",
}
TABLE: fields.Table = {
    spec.Norm: {"eps": ("layer_norm_epsilon", 1e-5)},
    spec.Branch: {"dropout": ("resid_pdrop", 0.0)},
    spec.Embed: {"dropout": ("emb_pdrop", 0.0)},
}
INERT = (
    *("learned_pos_emb", "init_device", "embedding_fraction", "verbose", "init_config", "tokenizer_name"),
    *("classifier_dropout", "hidden_dropout"),
)
NORMS = ("low_precision_layernorm", "layernorm")


def read_attention(config: Config) -> Config:
    """The nested table, all that would compute something else refused."""
    nested = Config(config.raw("attn_config", {}), f"attn_config of {config.where}")
    nested.fixed("attn_type", "multihead_attention", "multihead_attention")
    nested.fixed("alibi", True, True)
    nested.fixed("sliding_window_size", -1, -1)
    for key in ("prefix_lm", "qk_ln", "qk_gn", "rope"):
        nested.fixed(key, False, False)
    nested.inert("attn_impl", "attn_uses_sequence_id")
    return nested


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, KEYS, context=2048), fields.read(config, TABLE)
    for key, only in (("expansion_ratio", 4), ("no_bias", True), ("logit_scale", None)):
        config.fixed(key, only, only)
    if config.get("norm_type", NORMS[0]) not in NORMS:
        raise ConfigError(f"`norm_type` must be one of {', '.join(NORMS)}: got {config.raw('norm_type')!r}.")
    config.inert(*INERT)
    nested = read_attention(config)
    scores = fields.take(nested, {"scale": ("softmax_scale", float), "dropout": ("attn_pdrop", 0.0)})
    attention = replace(size.attention, relative=True, clip=nested.get("clip_qkv", 0.0) or None, **scores)
    norm, mlp = spec.Norm(kind="layer", **said[spec.Norm]), size.mlp("gelu", bias=False)
    alibi = spec.Alibi(heads=size.heads, most=nested.positive("alibi_bias_max", 8.0))
    nested.warn_unread()
    block = classic.block(attention, mlp, norm, **said[spec.Branch])
    return size.model(block, norm, size.embed(**said[spec.Embed]), alibi)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, most = fields.first(model, spec.Attention), fields.first(model, spec.Alibi).most
    nested = {
        "alibi_bias_max": int(most) if most.is_integer() else most,
        "clip_qkv": attention.clip,
        "softmax_scale": attention.scale,
        "attn_pdrop": attention.dropout or 0,  # the reference wants a whole number
    }
    return classic.write_sizes(model, KEYS) | fields.write(model, TABLE) | {"attn_config": nested}


B = "transformer.blocks.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.norm_f", "stack.final_norm"),
    *fused(f"{B}attn.Wqkv", classic.QKV, (1, 1, 1)),
    *block_names(B, norm1="norm_1", norm2="norm_2", out="attn.out_proj", up="ffn.up_proj", down="ffn.down_proj"),
)
FAMILY = Family(
    model_type="mpt",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: BODY + classic.head_names(model),
    heads=classic.heads_of("Mpt"),
    prefix="transformer.",
    sizes=KEYS,
)
