"""DBRX (Databricks 2024): sixteen fine experts, four for each token; clipped q, k and v, LayerNorm without biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope, spell_activation, write_rope
from openbook.models.experts import mixture_of
from openbook.models.family import CannotSay, Family, language, layers_of, none
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK, Shape, decoder
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


def to_spec(config: Config) -> spec.Model:
    attn, ffn = inner(config, "attn_config"), inner(config, "ffn_config")
    dim, heads = config.size("d_model", 2048), config.size("n_heads", 16)
    kv_heads = attn.size("kv_n_heads", config.size("num_key_value_heads", 1))  # the reference writes a copy
    context = config.size("max_seq_len", 2048)
    check_heads(heads, kv_heads, config.where)
    if dim % heads:
        raise ConfigError(f"`n_heads` must divide `d_model`: got {heads} and {dim} ({config.where}).")
    act = ffn.raw("ffn_act_fn", {"name": "silu"})
    if not isinstance(act, Mapping) or list(act) != ["name"]:
        raise ConfigError(f"`ffn_act_fn` of {ffn.where} must be an object with a `name`: got {act!r}.")
    ffn.fixed("hidden_size", dim, dim)
    config.fixed("emb_pdrop", 0.0, 0.0)
    config.fixed("resid_pdrop", 0.0, 0.0)
    attention = spec.Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        clip=attn.get("clip_qkv", None, float),
        rope=read_rope(config, dim // heads, context, theta=attn.get("rope_theta", 10000.0)),
        dropout=attn.get("attn_pdrop", 0.0),
    )
    norm = ffn.raw("moe_normalize_expert_weights", 1.0 if "moe_normalize_expert_weights" not in ffn.data else None)
    if norm not in (None, 1):
        raise ConfigError(f"`moe_normalize_expert_weights` of {ffn.where} must be 1 or null: got {norm!r}.")
    moe = spec.MoE(
        experts=ffn.size("moe_num_experts", 4),
        top_k=ffn.size("moe_top_k", 1),
        expert=spec.MLP(
            hidden=ffn.size("ffn_hidden_size", 3584), activation=ffn.activation_named(str(act["name"]), "ffn_act_fn")
        ),
        routing=spec.Routing(renormalise=norm is not None),
        balance=ffn.get("moe_loss_weight", 0.01),
        jitter=ffn.get("moe_jitter_eps", 0.0),
    )
    attn.warn_unread()
    ffn.warn_unread()
    shape = Shape(
        vocab=config.size("vocab_size", 32000),
        dim=dim,
        layers=config.layers("n_layers", 24),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        hidden=moe.expert.hidden,
        context=context,
    )
    return decoder(shape, NORM, lambda _: attention, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, moe = layers_of(model.stack, spec.Attention)[0], mixture_of(model)
    if attention.rope is None:
        raise CannotSay("it needs rotary positions")
    return {
        "vocab_size": model.embed.vocab,
        "d_model": model.stack.dim,
        "n_heads": attention.heads,
        "n_layers": len(model.stack.blocks),
        "max_seq_len": model.context,
        "rope_parameters": write_rope(attention.rope, attention.head_dim),
        "tie_word_embeddings": model.language is not None and model.language.tied,
        "attn_config": {
            "attn_pdrop": attention.dropout,
            "clip_qkv": attention.clip,
            "kv_n_heads": attention.kv_heads,
            "rope_theta": attention.rope.theta,
        },
        "ffn_config": {
            "ffn_act_fn": {"name": spell_activation(moe.expert.activation)},
            "ffn_hidden_size": moe.expert.hidden,
            "hidden_size": model.stack.dim,
            "moe_num_experts": moe.experts,
            "moe_top_k": moe.top_k,
            "moe_jitter_eps": moe.jitter or None,
            "moe_loss_weight": moe.balance,
            "moe_normalize_expert_weights": 1.0 if moe.routing.renormalise else None,
        },
    }


def names(model: spec.Model) -> tuple[Name, ...]:
    attention, count = layers_of(model.stack, spec.Attention)[0], mixture_of(model).experts
    block, first, second = "transformer.blocks.{i}", f"{BLOCK}.0", f"{BLOCK}.1"
    shares = (attention.heads, attention.kv_heads, attention.kv_heads)
    mlp = f"{block}.ffn.experts.mlp"
    return (
        Name("transformer.wte", "embed.tokens"),
        Name("transformer.norm_f", "stack.final_norm"),
        Name("lm_head", "heads.language"),
        Name(f"{block}.norm_attn_norm.norm_1", f"{first}.norm"),
        Name(f"{block}.norm_attn_norm.norm_2", f"{second}.norm"),
        *fused(f"{block}.norm_attn_norm.attn.Wqkv", [f"{first}.layer.{part}" for part in "qkv"], shares),
        Name(f"{block}.norm_attn_norm.attn.out_proj", f"{first}.layer.out"),
        Name(f"{block}.ffn.router.layer", f"{second}.layer.router"),
        Name(f"{mlp}.w1", f"{second}.layer.experts.gate", stacked=True, fold=count),
        Name(f"{mlp}.v1", f"{second}.layer.experts.up", stacked=True, fold=count),
        Name(f"{mlp}.w2", f"{second}.layer.experts.down", transpose=True, stacked=True, fold=count),
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
