"""DBRX (Databricks 2024): sixteen fine experts, four for each token; clipped q, k and v, LayerNorm without biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config, read_rope, spell_activation, write_rope
from openbook.models.experts import mixture_of
from openbook.models.family import CannotSay, Family, language, none
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK, Shape, block_names, decoder
from openbook.nn import spec
from openbook.nn.build import check_heads

KEYS = {"vocab": "vocab_size", "dim": "d_model", "layers": "n_layers", "heads": "n_heads", "context": "max_seq_len"}
NORM = spec.Norm(kind="layer", eps=1e-5)


def inner(config: Config, key: str) -> Config:
    """One of the two tables."""
    table = config.raw(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"`{key}` of {config.where} must be an object: got {table!r}.")
    return Config(table, f"{key} of {config.where}")


ATTENTION: fields.Fields = {"clip": ("clip_qkv", float), "dropout": ("attn_pdrop", 0.0)}
MIXTURE: fields.Fields = {
    "experts": ("moe_num_experts", 4),
    "top_k": ("moe_top_k", 1),
    "balance": ("moe_loss_weight", 0.01),
    "jitter": ("moe_jitter_eps", 0.0),
}
EVEN = "moe_normalize_expert_weights"  # to which norm the shares of a token's experts are brought


def read_shape(config: Config, kv_heads: int, hidden: int) -> Shape:
    """The sizes; those of the two tables are given."""
    dim, heads = config.size("d_model", 2048), config.size("n_heads", 16)
    check_heads(heads, kv_heads, config.where)
    if dim % heads:
        raise ConfigError(f"`n_heads` must divide `d_model`: got {heads} and {dim} ({config.where}).")
    vocab, layers = config.size("vocab_size", 32000), config.layers("n_layers", 24)
    return Shape(vocab, dim, layers, heads, kv_heads, dim // heads, hidden, config.size("max_seq_len", 2048))


def read_mixture(ffn: Config, hidden: int) -> spec.MoE:
    """The experts."""
    act = ffn.raw("ffn_act_fn", {"name": "silu"})
    if not isinstance(act, Mapping) or list(act) != ["name"]:
        raise ConfigError(f"`ffn_act_fn` of {ffn.where} must be an object with a `name`: got {act!r}.")
    norm = ffn.raw(EVEN, None if EVEN in ffn.data else 1.0)
    if norm not in (None, 1):
        raise ConfigError(f"`{EVEN}` of {ffn.where} must be 1 or null: got {norm!r}.")
    expert = spec.MLP(hidden=hidden, activation=ffn.activation_named(str(act["name"]), "ffn_act_fn"))
    return spec.MoE(expert=expert, routing=spec.Routing(renormalise=norm is not None), **fields.take(ffn, MIXTURE))


def to_spec(config: Config) -> spec.Model:
    attn, ffn = inner(config, "attn_config"), inner(config, "ffn_config")
    kv_heads = attn.size("kv_n_heads", config.size("num_key_value_heads", 1))  # the reference writes a copy
    shape = read_shape(config, kv_heads, ffn.size("ffn_hidden_size", 3584))
    ffn.fixed("hidden_size", shape.dim, shape.dim)
    for key in ("emb_pdrop", "resid_pdrop"):
        config.fixed(key, 0.0, 0.0)
    rope = read_rope(config, shape.head_dim, shape.context, theta=attn.get("rope_theta", 10000.0))
    attention, moe = (
        replace(shape.attention, rope=rope, **fields.take(attn, ATTENTION)),
        read_mixture(ffn, shape.hidden),
    )
    attn.warn_unread()
    ffn.warn_unread()
    return decoder(shape, NORM, lambda _: attention, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, moe = fields.first(model, spec.Attention), mixture_of(model)
    if attention.rope is None:
        raise CannotSay("it needs rotary positions")
    attn = {"kv_n_heads": attention.kv_heads, "rope_theta": attention.rope.theta}
    ffn = {
        "ffn_act_fn": {"name": spell_activation(moe.expert.activation)},
        "ffn_hidden_size": moe.expert.hidden,
        "hidden_size": model.stack.dim,
        "moe_jitter_eps": moe.jitter or None,
        EVEN: 1.0 if moe.routing.renormalise else None,
    }
    return {
        "vocab_size": model.embed.vocab,
        "d_model": model.stack.dim,
        "n_heads": attention.heads,
        "n_layers": len(model.stack.blocks),
        "max_seq_len": model.context,
        "rope_parameters": write_rope(attention.rope, attention.head_dim),
        "tie_word_embeddings": model.language is not None and model.language.tied,
        "attn_config": fields.say(attention, ATTENTION) | attn,
        "ffn_config": fields.say(moe, MIXTURE) | ffn,
    }


T, OURS = "transformer.blocks.{i}.", f"{BLOCK}.1.layer"


def names(model: spec.Model) -> tuple[Name, ...]:
    attention, count = fields.first(model, spec.Attention), mixture_of(model).experts
    shares, mlp = (attention.heads, attention.kv_heads, attention.kv_heads), f"{T}ffn.experts.mlp"
    return (
        Name("transformer.wte", "embed.tokens"),
        Name("transformer.norm_f", "stack.final_norm"),
        Name("lm_head", "heads.language"),
        *block_names(f"{T}norm_attn_norm.", norm1="norm_1", norm2="norm_2", out="attn.out_proj"),
        *fused(f"{T}norm_attn_norm.attn.Wqkv", classic.QKV, shares),
        Name(f"{T}ffn.router.layer", f"{OURS}.router"),
        Name(f"{mlp}.w1", f"{OURS}.experts.gate", stacked=True, fold=count),
        Name(f"{mlp}.v1", f"{OURS}.experts.up", stacked=True, fold=count),
        Name(f"{mlp}.w2", f"{OURS}.experts.down", transpose=True, stacked=True, fold=count),
    )


FAMILY = Family(
    model_type="dbrx",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={"DbrxForCausalLM": language, "DbrxModel": none},
    prefix="transformer.",
    sizes=KEYS | {"tied": "tie_word_embeddings"},
)
