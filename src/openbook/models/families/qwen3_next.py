"""Qwen 3 Next (Qwen Team 2025): the gated delta rule, gated attention every fourth layer, many experts beside one."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope
from openbook.models.experts import expert_names, sparse_layers
from openbook.models.families.qwen2_moe import read_mixture, write_mixture
from openbook.models.family import Family, classes_of_last, language, layers_of, none
from openbook.models.hybrids import by_layer
from openbook.models.names import Name, Part
from openbook.models.parts import BASE, BLOCK, GATED, PRE_NORMS, Shape, decoder, read_shape, write_decoder
from openbook.nn import spec

KINDS = ("linear_attention", "full_attention")


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=32768, kv_heads=2, head_dim=256)
    eps, activation = config.get("rms_norm_eps", 1e-6), config.activation("hidden_act", "silu")
    norm = spec.Norm(eps=eps, offset=1.0)
    bias = config.get("attention_bias", False)
    attention = spec.Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope=read_rope(config, shape.head_dim, shape.context, share=0.25),
        dropout=config.get("attention_dropout", 0.0),
        norm=norm,
        bias=bias,
        out_bias=bias,
        gate=True,
    )
    delta = spec.GatedDelta(
        heads=config.size("linear_num_key_heads", 16),
        value_heads=config.size("linear_num_value_heads", 32),
        key_dim=config.size("linear_key_head_dim", 128),
        value_dim=config.size("linear_value_head_dim", 128),
        kernel=config.size("linear_conv_kernel_dim", 4),
        activation=activation,
        norm=spec.Norm(eps=eps),
    )
    moe = read_mixture(config, experts=512, top_k=10, hidden=512, shared=512, renormalise=True)
    mlp, sparse = spec.MLP(hidden=shape.hidden, activation=activation), sparse_layers(config, shape.layers)
    kinds = read_kinds(config, shape)
    return decoder(
        shape,
        norm,
        lambda number: delta if kinds[number] == KINDS[0] else attention,
        lambda number: moe if sparse[number] else mlp,
    )


def read_kinds(config: Config, shape: Shape) -> list[str]:
    """`layer_types`; else attention in every `full_attention_interval`-th layer."""
    step = config.size("full_attention_interval", 4)
    found = config.raw("layer_types", [KINDS[(number + 1) % step == 0] for number in range(shape.layers)])
    if not isinstance(found, list) or len(found) != shape.layers or any(kind not in KINDS for kind in found):
        raise ConfigError(
            f"`layer_types` must list {shape.layers} layers, each {' or '.join(KINDS)}: got {found!r} ({config.where})."
        )
    return found


def from_spec(model: spec.Model) -> dict[str, Any]:
    delta: spec.GatedDelta = layers_of(model.stack, spec.GatedDelta)[0]
    attention: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    said = write_decoder(model) | write_mixture(model)
    shared = layers_of(model.stack, spec.MoE)[0].shared
    return said | {
        "attention_bias": attention.bias,
        "linear_num_key_heads": delta.heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.kernel,
        "layer_types": [KINDS[isinstance(block.branches[0].layer, spec.Attention)] for block in model.stack.blocks],
        "shared_expert_intermediate_size": 1 if shared is None else shared.hidden,
    }


L, OURS = "model.layers.{i}.", f"{BLOCK}.0.layer."


def mixer_names(layer: spec.Layer) -> tuple[Name, ...]:
    """Of a block's first layer."""
    if isinstance(layer, spec.GatedDelta):
        values = layer.value_heads // layer.heads
        sizes = (layer.key_dim, layer.key_dim, values * layer.value_dim, values * layer.value_dim)
        return (
            *(
                Name(f"{L}linear_attn.in_proj_qkvz", f"{OURS}{name}", part=Part(which, sizes, layer.heads))
                for which, name in enumerate(("q", "k", "v", "gate"))
            ),
            *(
                Name(f"{L}linear_attn.in_proj_ba", f"{OURS}{name}", part=Part(which, (1, 1), layer.heads))
                for which, name in enumerate(("rate", "step"))
            ),
            Name(f"{L}linear_attn.conv1d.weight", f"{OURS}conv", insert=1),
            Name(f"{L}linear_attn.dt_bias", f"{OURS}shift"),
            Name(f"{L}linear_attn.A_log", f"{OURS}log_decay"),
            Name(f"{L}linear_attn.norm", f"{OURS}norm"),
            Name(f"{L}linear_attn.out_proj", f"{OURS}out"),
        )
    assert isinstance(layer, spec.Attention)
    own = tuple(name for name in BASE if ".self_attn." in name.theirs and "q_proj" not in name.theirs)
    return own + tuple(
        Name(f"{L}self_attn.q_proj", f"{OURS}{name}", part=Part(which, (1, 1), layer.heads))
        for which, name in enumerate(("q", "gate"))
    )


NAMES = (
    *(name for name in BASE if "{i}" not in name.theirs),
    *PRE_NORMS,
    *GATED,
    *expert_names(f"{L}mlp"),
)
FAMILY = Family(
    model_type="qwen3_next",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + by_layer(model, mixer_names),
    heads={
        "Qwen3NextForCausalLM": language,
        "Qwen3NextModel": none,
        "Qwen3NextForSequenceClassification": classes_of_last,
    },
    prefix="model.",
    ignore=(r"mtp\..*",),
)
