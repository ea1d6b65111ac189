"""MPT (MosaicML 2023): ALiBi, no biases anywhere, q, k and v clipped if need be.

Its `attn_config` is read as its makers' code reads it; the reference ignores `alibi_bias_max`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, branches_of, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = {
    "vocab": "vocab_size",
    "dim": "d_model",
    "layers": "n_layers",
    "heads": "n_heads",
    "context": "max_seq_len",
    "tied": "tie_word_embeddings",
}
INERT = ("learned_pos_emb", "init_device", "embedding_fraction", "verbose", "init_config", "tokenizer_name")
NORMS = ("low_precision_layernorm", "layernorm")


def read_attention(config: Config) -> Config:
    """The nested table, all that would compute something else refused."""
    nested = Config(config.raw("attn_config", {}), f"attn_config of {config.where}")
    nested.fixed("attn_type", "multihead_attention", "multihead_attention")
    nested.fixed("alibi", True, True)
    nested.fixed("sliding_window_size", -1, -1)
    for key in ("prefix_lm", "qk_ln", "qk_gn", "rope"):
        nested.fixed(key, False, False)
    for inert in ("attn_impl", "attn_uses_sequence_id"):
        nested.raw(inert)
    return nested


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, KEYS, context=2048)
    for key, only in (("expansion_ratio", 4), ("no_bias", True), ("logit_scale", None)):
        config.fixed(key, only, only)
    if config.get("norm_type", NORMS[0]) not in NORMS:
        raise ConfigError(f"`norm_type` must be one of {', '.join(NORMS)}: got {config.raw('norm_type')!r}.")
    for inert in (*INERT, "classifier_dropout", "hidden_dropout"):
        config.raw(inert)
    nested = read_attention(config)
    attention = replace(
        size.attention,
        relative=True,
        clip=nested.get("clip_qkv", 0.0) or None,
        scale=nested.get("softmax_scale", None, float),
        dropout=nested.get("attn_pdrop", 0.0),
    )
    norm, mlp = classic.layer_norm(config, bias=False), size.mlp("gelu", bias=False)
    alibi = spec.Alibi(heads=size.heads, most=nested.positive("alibi_bias_max", 8.0))
    nested.warn_unread()
    block = classic.block(attention, mlp, norm, dropout=config.get("resid_pdrop", 0.0))
    return size.model(block, norm, size.embed(config.get("emb_pdrop", 0.0)), alibi)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, rule = layers_of(model.stack, spec.Attention)[0], model.stack.relative
    if not isinstance(rule, spec.Alibi):
        raise CannotSay("it needs ALiBi")
    return classic.write_sizes(model, KEYS) | {
        "attn_config": {
            "alibi_bias_max": int(rule.most) if rule.most.is_integer() else rule.most,
            "clip_qkv": attention.clip,
            "softmax_scale": attention.scale,
            "attn_pdrop": attention.dropout or 0,  # the reference wants a whole number
        },
        "layer_norm_epsilon": classic.norm_of(model).eps,
        "resid_pdrop": branches_of(model.stack)[0].dropout,
        "emb_pdrop": model.embed.dropout,
    }


B = "transformer.blocks.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.norm_f", "stack.final_norm"),
    Name(f"{B}norm_1", f"{BLOCK}.0.norm"),
    Name(f"{B}norm_2", f"{BLOCK}.1.norm"),
    *fused(f"{B}attn.Wqkv", classic.QKV, (1, 1, 1)),
    Name(f"{B}attn.out_proj", f"{BLOCK}.0.layer.out"),
    Name(f"{B}ffn.up_proj", f"{BLOCK}.1.layer.up"),
    Name(f"{B}ffn.down_proj", f"{BLOCK}.1.layer.down"),
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
