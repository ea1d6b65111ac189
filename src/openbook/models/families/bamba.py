"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba 2 with attention in a few named layers, feed-forward behind each."""

from __future__ import annotations

import math
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope
from openbook.models.families.jamba import ATTENTION
from openbook.models.families.jamba import NAMES as JAMBA_NAMES
from openbook.models.families.mamba2 import NAMES as MAMBA_NAMES
from openbook.models.families.mamba2 import read_limits
from openbook.models.family import CannotSay, Family, language, layers_of, none
from openbook.models.hybrids import by_layer
from openbook.models.names import Name
from openbook.models.parts import decoder, read_shape, write_decoder
from openbook.nn import spec

INERT = ("num_logits_to_keep", "z_loss_coefficient", "attn_rotary_emb", "layers_block_type")


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=262144, kv_heads=8)
    for inert in (*INERT, "layer_types"):
        config.raw(inert)
    norm, activation = spec.Norm(eps=config.get("rms_norm_eps", 1e-5)), config.activation("hidden_act", "silu")
    bias = config.get("attention_bias", False)
    attention = spec.Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope=read_rope(config, shape.head_dim, shape.context, share=0.5),
        dropout=config.get("attention_dropout", 0.0),
        bias=bias,
        out_bias=bias,
    )
    mamba = read_mamba(config, shape.dim, activation, norm)
    mlp = spec.MLP(hidden=shape.hidden, activation=activation, bias=config.get("mlp_bias", False))
    attends = config.raw("attn_layer_indices", [])
    if not isinstance(attends, list) or not all(type(number) is int for number in attends):
        raise ConfigError(f"`attn_layer_indices` must list numbers of layers: got {attends!r} ({config.where}).")
    return decoder(shape, norm, lambda number: attention if number in attends else mamba, mlp)


def read_mamba(config: Config, dim: int, activation: str, norm: spec.Norm) -> spec.StateSpaceDual:
    """The layers with a state, as `mamba_n_heads` and its like say them."""
    config.raw("mamba_chunk_size")
    heads, inner = config.size("mamba_n_heads", 128), config.size("mamba_expand", 2) * dim
    given = config.raw("mamba_d_head", "auto")
    size = max(inner // heads, 1) if given == "auto" else config.size("mamba_d_head")
    if heads * size != inner:
        raise ConfigError(
            f"`mamba_n_heads` · `mamba_d_head` must be `mamba_expand` · `hidden_size`: got {heads} · {size}, {inner} "
            f"({config.where})."
        )
    return spec.StateSpaceDual(
        heads=heads,
        head_dim=size,
        groups=config.size("mamba_n_groups", 1),
        state=config.size("mamba_d_state", 256),
        kernel=config.size("mamba_d_conv", 4),
        activation=activation,
        bias=config.get("mamba_proj_bias", False),
        conv_bias=config.get("mamba_conv_bias", True),
        norm=norm,
        **read_limits(config),
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    mlp: spec.MLP = layers_of(model.stack, spec.MLP)[0]
    kinds = [isinstance(block.branches[0].layer, spec.Attention) for block in model.stack.blocks]
    return (
        write_decoder(model)
        | write_mamba(model)
        | {
            "attention_bias": attention.bias,
            "mlp_bias": mlp.bias,
            "attn_layer_indices": [number for number, attends in enumerate(kinds) if attends],
        }
    )


def write_mamba(model: spec.Model) -> dict[str, Any]:
    """The keys that `read_mamba` reads."""
    mamba: spec.StateSpaceDual = layers_of(model.stack, spec.StateSpaceDual)[0]
    if mamba.heads * mamba.head_dim % model.stack.dim:
        raise CannotSay("it needs channels that are a multiple of its width")
    return {
        "mamba_n_heads": mamba.heads,
        "mamba_d_head": mamba.head_dim,
        "mamba_n_groups": mamba.groups,
        "mamba_d_state": mamba.state,
        "mamba_d_conv": mamba.kernel,
        "mamba_expand": mamba.heads * mamba.head_dim // model.stack.dim,
        "mamba_proj_bias": mamba.bias,
        "mamba_conv_bias": mamba.conv_bias,
        "time_step_limit": [mamba.step_least, math.inf if mamba.step_most is None else mamba.step_most],
    }


MAMBA = tuple(
    Name(name.theirs.replace("backbone.layers.{i}.mixer.", "model.layers.{i}.mamba."), name.ours, insert=name.insert)
    for name in MAMBA_NAMES
    if ".mixer." in name.theirs
)
FAMILY = Family(
    model_type="bamba",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: JAMBA_NAMES + by_layer(model, lambda x: ATTENTION if isinstance(x, spec.Attention) else MAMBA),
    heads={"BambaForCausalLM": language, "BambaModel": none},
    prefix="model.",
)
