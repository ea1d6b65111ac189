"""Qwen 3 Next (Qwen Team 2025): the gated delta rule, gated attention every fourth layer, many experts beside one."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import expert_names, sparse_layers
from openbook.models.families.qwen2_moe import read_mixture, write_mixture
from openbook.models.family import Family, classes_of_last, language, none
from openbook.models.hybrids import ATTENTION, OUTER, by_layer
from openbook.models.modern import attention, biased, write_bias
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK, GATED, PRE_NORMS, Shape, decoder, read_shape, write_decoder
from openbook.nn import spec

KINDS = ("linear_attention", "full_attention")
DELTA: fields.Fields = {
    "heads": ("linear_num_key_heads", 16),
    "value_heads": ("linear_num_value_heads", 32),
    "key_dim": ("linear_key_head_dim", 128),
    "value_dim": ("linear_value_head_dim", 128),
    "kernel": ("linear_conv_kernel_dim", 4),
    "activation": ("hidden_act", "silu"),
}


def to_spec(config: Config) -> spec.Model:
    shape, eps = read_shape(config, context=32768, kv_heads=2, head_dim=256), config.get("rms_norm_eps", 1e-6)
    norm = spec.Norm(eps=eps, offset=1.0)
    full = attention(config, shape, share=0.25, norm=norm, gate=True, **biased(config))
    delta = spec.GatedDelta(norm=spec.Norm(eps=eps), **fields.take(config, DELTA))
    moe = read_mixture(config, experts=512, top_k=10, hidden=512, shared=512, renormalise=True)
    mlp, sparse = spec.MLP(hidden=shape.hidden, activation=delta.activation), sparse_layers(config, shape.layers)
    mixers = [delta if kind == KINDS[0] else full for kind in read_kinds(config, shape)]
    return decoder(shape, norm, mixers.__getitem__, lambda number: moe if sparse[number] else mlp)


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
    kinds = [KINDS[isinstance(block.branches[0].layer, spec.Attention)] for block in model.stack.blocks]
    said = fields.say(fields.first(model, spec.GatedDelta), DELTA) | write_decoder(model)
    return said | write_mixture(model) | write_bias(model) | {"layer_types": kinds}


L, M, OURS = "model.layers.{i}.", "model.layers.{i}.linear_attn.", f"{BLOCK}.0.layer."
DELTA_NAMES = (
    Name(f"{M}conv1d.weight", f"{OURS}conv", insert=1),
    Name(f"{M}dt_bias", f"{OURS}shift"),
    Name(f"{M}A_log", f"{OURS}log_decay"),
    Name(f"{M}norm", f"{OURS}norm"),
    Name(f"{M}out_proj", f"{OURS}out"),
)


def mixer_names(layer: spec.Layer) -> tuple[Name, ...]:
    """Of a block's first layer."""
    if isinstance(layer, spec.GatedDelta):
        width = layer.value_heads // layer.heads * layer.value_dim
        sizes, parts = (layer.key_dim, layer.key_dim, width, width), [f"{OURS}{n}" for n in ("q", "k", "v", "gate")]
        return (
            *fused(f"{M}in_proj_qkvz", parts, sizes, layer.heads),
            *fused(f"{M}in_proj_ba", (f"{OURS}rate", f"{OURS}step"), (1, 1), layer.heads),
            *DELTA_NAMES,
        )
    assert isinstance(layer, spec.Attention)
    own = tuple(name for name in ATTENTION if "q_proj" not in name.theirs)
    return own + fused(f"{L}self_attn.q_proj", (f"{OURS}q", f"{OURS}gate"), (1, 1), layer.heads)


NAMES = (*OUTER, *PRE_NORMS, *GATED, *expert_names(f"{L}mlp"))
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
