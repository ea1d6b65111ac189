"""Jamba (Lieber et al. 2024): Mamba with norms inside, attention without positions now and then, experts in between."""

from __future__ import annotations

import math
from typing import Any

from openbook.models.config import Config
from openbook.models.experts import expert_names
from openbook.models.families.mamba import NAMES as MAMBA_NAMES
from openbook.models.family import CannotSay, Family, classes_of_last, language, layers_of, none
from openbook.models.hybrids import by_layer, every, say_every, write_plain
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, decoder, read_shape
from openbook.nn import spec

INERT = ("use_mamba_kernels", "use_mambapy", "use_associative_scan", "calc_logits_for_entire_prompt")


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=262144, kv_heads=8)
    activation = config.activation("hidden_act", "silu")
    for inert in (*INERT, "num_logits_to_keep", "sliding_window"):
        config.raw(inert)
    config.fixed("mamba_inner_layernorms", True, True)
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-6))
    usual = config.raw("mamba_dt_rank", "auto") == "auto"
    mamba = spec.Selective(
        inner=config.size("mamba_expand", 2) * shape.dim,
        state=config.size("mamba_d_state", 16),
        kernel=config.size("mamba_d_conv", 4),
        rank=math.ceil(shape.dim / 16) if usual else config.size("mamba_dt_rank"),
        activation=activation,
        bias=config.get("mamba_proj_bias", False),
        conv_bias=config.get("mamba_conv_bias", True),
        norm=norm,
    )
    attention = spec.Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp, experts = spec.MLP(hidden=shape.hidden, activation=activation), config.size("num_experts", 16)
    moe = spec.MoE(
        experts=experts,
        top_k=config.size("num_experts_per_tok", 2),
        expert=mlp,
        routing=spec.Routing(renormalise=False),
        balance=config.get("router_aux_loss_coef", 0.001),
    )
    attends = every(config, "attn", shape.layers, 8, 4)
    sparse = every(config, "expert", shape.layers, 2, 1)
    return decoder(
        shape,
        norm,
        lambda number: attention if attends[number] else mamba,
        lambda number: moe if sparse[number] and experts > 1 else mlp,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    mamba: spec.Selective = layers_of(model.stack, spec.Selective)[0]
    attention: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    pairs = [[branch.layer for branch in block.branches] for block in model.stack.blocks]
    sparse = [isinstance(pair[-1], spec.MoE) for pair in pairs]
    moe = next((pair[-1] for pair in pairs if isinstance(pair[-1], spec.MoE)), None)
    mlp = next((pair[-1] for pair in pairs if isinstance(pair[-1], spec.MLP)), None if moe is None else moe.expert)
    if mlp is None or mamba.inner % model.stack.dim:
        raise CannotSay("it needs feed-forward layers and channels that are a multiple of its width")
    experts = (
        {"num_experts": 1}
        if moe is None
        else {
            "num_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "router_aux_loss_coef": moe.balance,
        }
    )
    return (
        write_plain(model, attention, mlp)
        | {
            "mamba_expand": mamba.inner // model.stack.dim,
            "mamba_d_state": mamba.state,
            "mamba_d_conv": mamba.kernel,
            "mamba_dt_rank": mamba.rank,
            "mamba_proj_bias": mamba.bias,
            "mamba_conv_bias": mamba.conv_bias,
        }
        | experts
        | say_every([isinstance(pair[0], spec.Attention) for pair in pairs], "attn")
        | (say_every(sparse, "expert") if moe is not None else {})
    )


L, OURS = "model.layers.{i}.", f"{BLOCK}.0.layer."
ATTENTION = tuple(name for name in BASE if ".self_attn." in name.theirs)
MAMBA = tuple(
    Name(name.theirs.replace("backbone.layers.{i}.mixer.", f"{L}mamba."), name.ours, insert=name.insert)
    for name in MAMBA_NAMES
    if ".mixer." in name.theirs
) + tuple(
    Name(f"{L}mamba.{a}_layernorm", f"{OURS}{b}_norm") for a, b in (("dt", "step"), ("b", "write"), ("c", "read"))
)
NAMES = (
    *(name for name in BASE if "{i}" not in name.theirs and name.theirs != "model.norm"),
    Name("model.final_layernorm", "stack.final_norm"),
    Name(f"{L}input_layernorm", f"{BLOCK}.0.norm"),
    Name(f"{L}pre_ff_layernorm", f"{BLOCK}.1.norm"),
    *expert_names(f"{L}feed_forward", router="router"),
    *(Name(f"{L}feed_forward.{name}_proj", f"{BLOCK}.1.layer.{name}") for name in ("gate", "up", "down")),
)
FAMILY = Family(
    model_type="jamba",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + by_layer(model, lambda x: ATTENTION if isinstance(x, spec.Attention) else MAMBA),
    heads={"JambaForCausalLM": language, "JambaModel": none, "JambaForSequenceClassification": classes_of_last},
    prefix="model.",
)
