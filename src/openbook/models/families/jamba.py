"""Jamba (Lieber et al. 2024): Mamba with norms inside, attention without positions now and then, experts in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import chosen, expert_names
from openbook.models.families import mamba
from openbook.models.family import CannotSay, Family, classes_of_last, language, none
from openbook.models.hybrids import ATTENTION, OUTER, by_layer, every, inside, say_every, state_rank, write_plain
from openbook.models.modern import rms
from openbook.models.names import Name
from openbook.models.parts import BLOCK, block_names, decoder, read_shape
from openbook.nn import spec

INERT = ("use_mamba_kernels", "use_mambapy", "use_associative_scan", "calc_logits_for_entire_prompt")
MAMBA: fields.Fields = {
    "state": ("mamba_d_state", 16),
    "kernel": ("mamba_d_conv", 4),
    "bias": ("mamba_proj_bias", False),
    "conv_bias": ("mamba_conv_bias", True),
}
MIXTURE = chosen(16, 2, "num_experts")


def to_spec(config: Config) -> spec.Model:
    shape, norm = read_shape(config, context=262144, kv_heads=8), rms(config)
    config.inert(*INERT, "num_logits_to_keep", "sliding_window")
    config.fixed("mamba_inner_layernorms", True, True)
    act, inner = config.activation("hidden_act", "silu"), config.size("mamba_expand", 2) * shape.dim
    rank = state_rank(config, "mamba_dt_rank", shape.dim)
    layer = spec.Selective(inner=inner, rank=rank, activation=act, norm=norm, **fields.take(config, MAMBA))
    attention = replace(shape.attention, dropout=config.get("attention_dropout", 0.0))
    mlp = spec.MLP(hidden=shape.hidden, activation=act)
    moe = spec.MoE(expert=mlp, routing=spec.Routing(renormalise=False), **fields.take(config, MIXTURE))
    attends, sparse = every(config, "attn", shape.layers, 8, 4), every(config, "expert", shape.layers, 2, 1)
    mixers = [attention if one else layer for one in attends]
    return decoder(shape, norm, mixers.__getitem__, lambda i: moe if sparse[i] and moe.experts > 1 else mlp)


def from_spec(model: spec.Model) -> dict[str, Any]:
    layer, attention = fields.first(model, spec.Selective), fields.first(model, spec.Attention)
    pairs = [[branch.layer for branch in block.branches] for block in model.stack.blocks]
    moe = next((pair[-1] for pair in pairs if isinstance(pair[-1], spec.MoE)), None)
    if layer.inner % model.stack.dim:
        raise CannotSay("it needs channels that are a multiple of its width")
    experts: dict[str, Any] = {"num_experts": 1}
    if moe is not None:
        sparse = say_every([isinstance(pair[-1], spec.MoE) for pair in pairs], "expert")
        experts = fields.say(moe, MIXTURE) | sparse
    own = {"mamba_expand": layer.inner // model.stack.dim, "mamba_dt_rank": layer.rank} | fields.say(layer, MAMBA)
    attends = say_every([isinstance(pair[0], spec.Attention) for pair in pairs], "attn")
    return write_plain(model, attention, fields.first(model, spec.MLP)) | own | experts | attends


L, OURS = "model.layers.{i}.", f"{BLOCK}.0.layer."
NORMS = tuple(
    Name(f"{L}mamba.{a}_layernorm", f"{OURS}{b}_norm") for a, b in (("dt", "step"), ("b", "write"), ("c", "read"))
)
MIXER = inside(mamba.NAMES) + NORMS
NAMES = (
    *(name for name in OUTER if name.theirs != "model.norm"),
    Name("model.final_layernorm", "stack.final_norm"),
    *block_names(L, norm1="input_layernorm", norm2="pre_ff_layernorm"),
    *expert_names(f"{L}feed_forward", router="router"),
    *block_names(f"{L}feed_forward.", gate="gate_proj", up="up_proj", down="down_proj"),
)
FAMILY = Family(
    model_type="jamba",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + by_layer(model, lambda x: ATTENTION if isinstance(x, spec.Attention) else MIXER),
    heads={"JambaForCausalLM": language, "JambaModel": none, "JambaForSequenceClassification": classes_of_last},
    prefix="model.",
)
