"""Granite 4 (IBM 2025): Mamba 2 or attention, mostly without positions; experts beside a shared one, or it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope, write_rope
from openbook.models.families.bamba import MAMBA, read_mamba, write_mamba
from openbook.models.families.granitemoe import EXPERTS, language
from openbook.models.family import CannotSay, Family, layers_of, none
from openbook.models.hybrids import by_layer, write_plain
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec

KINDS = {"mamba": False, "linear_attention": False, "attention": True, "full_attention": True}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    norm, activation = spec.Norm(eps=config.get("rms_norm_eps", 1e-6)), config.activation("hidden_act", "silu")
    config.fixed("normalization_function", "rmsnorm", "rmsnorm")
    config.raw("init_method")
    positions, bias = config.raw("position_embedding_type"), config.get("attention_bias", False)
    if positions not in (None, "nope", "rope"):
        raise ConfigError(f"`position_embedding_type` is null or 'rope': got {positions!r} ({config.where}).")
    rope = read_rope(config, shape.head_dim, shape.context)  # read in any case: its keys are known
    attention = spec.Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope=rope if positions == "rope" else None,
        dropout=config.get("attention_dropout", 0.0),
        bias=bias,
        out_bias=bias,
        scale=config.positive("attention_multiplier", 1.0),
    )
    mamba = read_mamba(config, shape.dim, activation, norm)
    shared = spec.MLP(hidden=config.size("shared_intermediate_size", 1024), activation=activation)
    experts = config.get("num_local_experts", 8)
    top_k, balance = config.get("num_experts_per_tok", 2), config.get("router_aux_loss_coef", 0.001)
    expert = replace(shared, hidden=shape.hidden)
    moe = spec.MoE(experts=experts, top_k=top_k, expert=expert, shared=shared, balance=balance)
    kinds = config.raw("layer_types", config.raw("layers_block_type", ["mamba"] * shape.layers))
    if not isinstance(kinds, list) or len(kinds) != shape.layers or any(str(kind) not in KINDS for kind in kinds):
        raise ConfigError(
            f"`layer_types` must list {shape.layers} layers, each 'mamba' or 'attention': got {kinds!r} "
            f"({config.where})."
        )
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=config.get("embedding_multiplier", 1.0))
    step = config.get("residual_multiplier", 1.0)
    mixers = [attention if KINDS[kind] else mamba for kind in kinds]
    return decoder(shape, norm, mixers.__getitem__, moe if experts else shared, embed=embed, scale=step)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    ffn = model.stack.blocks[0].branches[-1].layer
    moe = ffn if isinstance(ffn, spec.MoE) else None
    shared = ffn if moe is None else moe.shared
    if not isinstance(shared, spec.MLP) or attention.scale is None:
        raise CannotSay("it needs a feed-forward layer for every token, and scores scaled by a number of their own")
    experts = (
        {"num_local_experts": 0}
        if moe is None
        else {
            "num_local_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "router_aux_loss_coef": moe.balance,
        }
    )
    rope = {} if attention.rope is None else {"rope_parameters": write_rope(attention.rope, attention.head_dim)}
    return (
        write_plain(model, attention, shared if moe is None else moe.expert)
        | write_mamba(model)
        | experts
        | rope
        | {
            "attention_bias": attention.bias,
            "attention_multiplier": attention.scale,
            "embedding_multiplier": model.embed.scale,
            "residual_multiplier": model.stack.blocks[0].branches[0].scale,
            "logits_scaling": 1.0 if model.language is None else 1 / model.language.scale,
            "shared_intermediate_size": shared.hidden,
            "position_embedding_type": None if attention.rope is None else "rope",
            "layer_types": [
                "full_attention" if isinstance(block.branches[0].layer, spec.Attention) else "linear_attention"
                for block in model.stack.blocks
            ],
        }
    )


L, OURS = "model.layers.{i}.shared_mlp", f"{BLOCK}.1.layer"
SHARED = tuple(
    name
    for inner in (f"{OURS}.shared", OURS)
    for name in (
        Name(f"{L}.input_linear", f"{inner}.gate", part=(0, 2)),
        Name(f"{L}.input_linear", f"{inner}.up", part=(1, 2)),
        Name(f"{L}.output_linear", f"{inner}.down"),
    )
)
ATTENTION = tuple(name for name in BASE if ".self_attn." in name.theirs)
NAMES = (*(name for name in BASE if "{i}" not in name.theirs), *PRE_NORMS, *EXPERTS, *SHARED)
FAMILY = Family(
    model_type="granitemoehybrid",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + by_layer(model, lambda x: ATTENTION if isinstance(x, spec.Attention) else MAMBA),
    heads={"GraniteMoeHybridForCausalLM": language, "GraniteMoeHybridModel": none},
    prefix="model.",
    ignore=IGNORE,
)
