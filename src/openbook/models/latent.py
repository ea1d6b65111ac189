"""What the families of the DeepSeek line share: latent attention, routed experts, how both are read, written and named.

A family's own file says how its router scores, and what it is silent about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, magnitude, read_rope, spell_activation, write_rope
from openbook.models.experts import expert_names
from openbook.models.family import SIZES, CannotSay, Heads, language, layers_of
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, GATED, PRE_NORMS, Shape, decoder, write_labels
from openbook.nn import spec

Mixer = spec.Attention | spec.LatentAttention
LATENT_NORM = spec.Norm(eps=1e-6)  # whatever a config.json says of the other norms
CONTEXT = 4096  # where a config.json is silent
# What tells a trainer or a sharded server something, and changes no number.
INERT = ("aux_loss_alpha", "seq_aux", "ep_size")
LATENT_SIZES: Mapping[str, str] = {key: name for key, name in SIZES.items() if key not in ("kv_heads", "head_dim")}

LATENT = (
    *(entry for entry in BASE if ".self_attn." not in entry.theirs),
    *(
        Name(f"model.layers.{{i}}.self_attn.{theirs}", f"{BLOCK}.0.layer.{ours}")
        for theirs, ours in (
            ("q_proj", "q"),
            ("q_a_proj", "q_down"),
            ("q_a_layernorm", "q_norm"),
            ("q_b_proj", "q_up"),
            ("kv_a_proj_with_mqa", "kv_down"),
            ("kv_a_layernorm", "kv_norm"),
            ("kv_b_proj", "kv_up"),
            ("o_proj", "out"),
        )
    ),
)
FFN = PRE_NORMS + GATED + expert_names("model.layers.{i}.mlp", shared="shared_experts")


# A hub folder keeps copies of the embedding and the head beside every module that predicts further ahead.
COPIES = (r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight",)
AHEAD = "num_nextn_predict_layers"


# ------------------------------------------------------------------------------------------------ further ahead


def with_ahead(to_spec: Callable[[Config], spec.Model], default: bool = False) -> Callable[[Config], Heads]:
    """The language head and, where the config.json says so, one that predicts further ahead.

    Its blocks are those that would come next in the stack. `default`: whether the language head is tied.
    """

    def heads(config: Config) -> Heads:
        depth, layers = config.get(AHEAD, 0), config.layers("num_hidden_layers")
        if depth < 0:
            raise ConfigError(f"`{AHEAD}` must not be negative: got {depth} ({config.where}).")
        if not depth:
            return language(config, default)
        more = {**config.data, "num_hidden_layers": layers + 1}
        if isinstance(kinds := more.get("mlp_layer_types"), list):
            more["mlp_layer_types"] = [*kinds, "sparse"]
        block = to_spec(Config(more, config.where)).stack.blocks[-1]
        norm = block.branches[-1].norm
        assert norm is not None
        return (*language(config, default), spec.MultiToken(depth=depth, block=block, norm=norm))

    return heads


def ahead_names(model: spec.Model, table: tuple[Name, ...]) -> tuple[Name, ...]:
    """The names of a model whose modules for tokens further ahead are published as layers after the last."""
    if model.ahead is None:
        return table
    found: list[Name] = []
    for number in range(model.ahead.depth):
        theirs, ours = f"model.layers.{len(model.stack.blocks) + number}.", f"heads.ahead.steps.{number}."
        own = (("enorm", "embed_norm"), ("hnorm", "hidden_norm"), ("eh_proj", "join"), ("shared_head.norm", "norm"))
        found += [Name(theirs + one, ours + other) for one, other in own]
        found += [
            replace(
                entry,
                theirs=entry.theirs.replace("model.layers.{i}.", theirs),
                ours=entry.ours.replace("stack.blocks.{i}.", f"{ours}block."),
            )
            for entry in table
            if entry.ours.startswith("stack.blocks.{i}.")
        ]
    return (*found, *table)


def write_ahead(model: spec.Model) -> dict[str, Any]:
    """The key that `with_ahead` reads."""
    return {AHEAD: 0 if model.ahead is None else model.ahead.depth}


# ------------------------------------------------------------------------------------------------ attention


def read_latent(
    config: Config, defaults: Mapping[str, int], neighbours: bool = True, context: int = CONTEXT
) -> spec.LatentAttention:
    """Latent attention; `defaults` are the family's sizes where a config.json is silent."""
    heads, context = config.size("num_attention_heads"), config.size("max_position_embeddings", context)
    turned = config.size("qk_rope_head_dim", 64)
    nope = config.size("qk_nope_head_dim", defaults["qk_nope_head_dim"])
    config.fixed("num_key_value_heads", heads, heads)
    config.fixed("head_dim", turned, turned)
    config.fixed("qk_head_dim", nope + turned, nope + turned)
    rope = replace(read_rope(config, turned, context), neighbours=neighbours)
    if rope.dim != turned:
        raise ConfigError(f"All of the turned part of a head is turned: `partial_rotary_factor` is 1 ({config.where}).")
    null = config.raw("q_lora_rank") is None and "q_lora_rank" in config.data  # silence means the family's own
    low = None if null else defaults["q_lora_rank"]
    return spec.LatentAttention(
        heads=heads,
        kv_rank=config.size("kv_lora_rank", 512),
        nope_dim=nope,
        value_dim=config.size("v_head_dim", defaults["v_head_dim"]),
        rope=rope,
        q_rank=low and config.size("q_lora_rank", low),
        norm=LATENT_NORM,
        bias=config.get("attention_bias", False),
        out_bias=config.get("attention_bias", False),
        scale=_scale(config, rope, nope + turned),
        dropout=config.get("attention_dropout", 0.0),
    )


def _scale(config: Config, rope: spec.Rope, size: int) -> float | None:
    """The scale of scores where YaRN sharpens them too: 1/√size times the square of `mscale_all_dim`'s magnitude."""
    rules = config.raw("rope_parameters" if config.has("rope_parameters") else "rope_scaling", {})
    weight = rules.get("mscale_all_dim") or 0.0
    if not weight or rope.scaling is None:
        return None
    if not isinstance(rope.scaling, spec.YarnScaling):
        raise ConfigError(f"`mscale_all_dim` goes with the rope type 'yarn' alone ({config.where}).")
    sharper = magnitude(rope.scaling.factor, weight)
    return float(size**-0.5 * sharper * sharper)


def write_latent(model: spec.Model) -> dict[str, Any]:
    """The keys that `read_latent` reads, and those of the whole model beside its feed-forward layers."""
    layer: spec.LatentAttention = layers_of(model.stack, spec.LatentAttention)[0]
    if model.stack.final_norm is None:
        raise CannotSay("it needs a final norm")
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "num_hidden_layers": len(model.stack.blocks),
        "num_attention_heads": layer.heads,
        "num_key_value_heads": layer.heads,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.stack.final_norm.eps,
        "attention_bias": layer.bias,
        "attention_dropout": layer.dropout,
        "q_lora_rank": layer.q_rank,
        "kv_lora_rank": layer.kv_rank,
        "qk_nope_head_dim": layer.nope_dim,
        "qk_rope_head_dim": layer.rope.dim,
        "v_head_dim": layer.value_dim,
        "rope_parameters": _write_rope(layer),
        "tie_word_embeddings": model.language is None or model.language.tied,
    } | write_labels(model)


def _write_rope(layer: spec.LatentAttention) -> dict[str, Any]:
    rules, yarn = write_rope(layer.rope, layer.rope.dim), layer.rope.scaling
    if layer.scale is None:
        return rules
    if not isinstance(yarn, spec.YarnScaling) or yarn.factor <= 1:
        raise CannotSay("it scales scores in its own way")
    per = 0.1 * math.log(yarn.factor)
    sharper = math.sqrt(layer.scale * math.sqrt(layer.nope_dim + layer.rope.dim))
    weights = {"mscale_all_dim": (sharper - 1) / per, "mscale": (yarn.attention * sharper - 1) / per}
    return rules | {name: round(weight, 10) for name, weight in weights.items()}


# ------------------------------------------------------------------------------------------------ feed-forward


def read_routed(config: Config, routing: spec.Routing, defaults: Mapping[str, int], scale: float = 1.0) -> spec.MoE:
    """The experts of the sparse blocks, and the shared one of `n_shared_experts` times their width."""
    activation = config.activation("hidden_act", "silu")
    hidden = config.size("moe_intermediate_size", defaults["moe_intermediate_size"])
    shared = config.get("n_shared_experts", defaults["n_shared_experts"])
    return spec.MoE(
        experts=config.size("n_routed_experts", config.size("num_local_experts", defaults["n_routed_experts"])),
        top_k=config.size("num_experts_per_tok", defaults["num_experts_per_tok"]),
        expert=spec.MLP(hidden=hidden, activation=activation),
        routing=replace(routing, scale=config.get("routed_scaling_factor", scale)),
        shared=spec.MLP(hidden=hidden * shared, activation=activation) if shared else None,
        balance=config.get("router_aux_loss_coef", 0.0),
    )


def read_groups(config: Config, groups: int, top_groups: int) -> spec.Routing:
    """Sigmoid scores with a correction, in groups judged by their two best (DeepSeek-AI 2024b, §2.1.2)."""
    config.fixed("scoring_func", "sigmoid", "sigmoid")
    config.fixed("topk_method", "noaux_tc", "noaux_tc")
    return spec.Routing(
        score="sigmoid",
        renormalise=config.get("norm_topk_prob", True),
        groups=config.size("n_group", groups),
        top_groups=config.size("topk_group", top_groups),
        group_score="sum2",
        correction=True,
    )


def read_decoder(
    config: Config,
    attention: Mixer | Callable[[int], Mixer],
    moe: spec.MoE,
    dense: int,
    eps: float = 1e-6,
    context: int = CONTEXT,
) -> spec.Model:
    """The model without heads: the first `dense` blocks (where `first_k_dense_replace` is silent) have no experts."""
    config.fixed("moe_layer_freq", 1, 1)
    first = config.get("first_k_dense_replace", dense)
    if first < 0:
        raise ConfigError(f"`first_k_dense_replace` must not be negative: got {first} ({config.where}).")
    mlp = spec.MLP(hidden=config.size("intermediate_size"), activation=moe.expert.activation)
    return build(config, attention, lambda number: mlp if number < first else moe, eps, context)


def build(
    config: Config,
    attention: Mixer | Callable[[int], Mixer],
    ffn: Callable[[int], spec.MLP | spec.MoE],
    eps: float = 1e-6,
    context: int = CONTEXT,
) -> spec.Model:
    """The model of one attention, or one for each block, and these feed-forward layers."""
    first = attention(0) if callable(attention) else attention
    config.inert(*INERT)
    shape = Shape(
        vocab=config.size("vocab_size"),
        dim=config.size("hidden_size"),
        layers=config.layers("num_hidden_layers"),
        heads=first.heads,
        kv_heads=first.heads,
        head_dim=first.rope.dim if first.rope else 1,
        hidden=config.size("intermediate_size"),
        context=config.size("max_position_embeddings", context),
    )
    norm = spec.Norm(eps=config.get("rms_norm_eps", eps))
    return decoder(shape, norm, attention if callable(attention) else lambda _: first, ffn)


def write_routed(model: spec.Model) -> dict[str, Any]:
    """The keys that `read_routed` and `read_decoder` read."""
    ffns = [block.branches[-1].layer for block in model.stack.blocks]
    mixtures = [layer for layer in ffns if isinstance(layer, spec.MoE)]
    plain = [layer for layer in ffns if isinstance(layer, spec.MLP)]
    dense = next((number for number, layer in enumerate(ffns) if isinstance(layer, spec.MoE)), len(ffns))
    if not (plain or mixtures):
        raise CannotSay("its blocks end in no feed-forward layer")
    first = plain[0] if plain else mixtures[0].expert
    said = {
        "intermediate_size": first.hidden,
        "hidden_act": spell_activation(first.activation),
        "first_k_dense_replace": dense,
    }
    if not mixtures:
        return said
    moe = mixtures[0]
    shared, left = (0, 0) if moe.shared is None else divmod(moe.shared.hidden, moe.expert.hidden)
    if left:
        raise CannotSay("its shared expert is no whole number of experts wide")
    return (
        said
        | {
            "n_routed_experts": moe.experts,
            "n_shared_experts": shared,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.expert.hidden,
            "routed_scaling_factor": moe.routing.scale,
            "n_group": moe.routing.groups,
            "topk_group": moe.routing.top_groups,
            "norm_topk_prob": moe.routing.renormalise,
        }
        | ({"router_aux_loss_coef": moe.balance} if moe.balance else {})
    )
