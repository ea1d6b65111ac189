"""Granite 4 (IBM 2025): Mamba 2 or attention, mostly without positions; experts beside a shared one, or it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import fields
from openbook.models.config import Config, write_rope
from openbook.models.experts import chosen
from openbook.models.families import bamba, granite, granitemoe
from openbook.models.family import CannotSay, Family, none
from openbook.models.hybrids import ATTENTION, OUTER, by_layer, write_plain
from openbook.models.modern import attention, biased, rms, write_bias
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec

KINDS = {"mamba": False, "linear_attention": False, "attention": True, "full_attention": True}
SHARED: fields.Fields = {"hidden": ("shared_intermediate_size", 1024), "activation": ("hidden_act", "silu")}


def to_spec(config: Config) -> spec.Model:
    shape, norm = read_shape(config, context=2048), rms(config)
    config.fixed("normalization_function", "rmsnorm", "rmsnorm")
    config.inert("init_method")
    positions = config.raw("position_embedding_type")
    if positions not in (None, "nope", "rope"):
        raise ConfigError(f"`position_embedding_type` is null or 'rope': got {positions!r} ({config.where}).")
    scale = config.positive("attention_multiplier", 1.0)
    turned = attention(config, shape, scale=scale, **biased(config))  # its keys are read in any case
    full = turned if positions == "rope" else replace(turned, rope=None)
    shared = spec.MLP(**fields.take(config, SHARED))
    layer = bamba.read_mamba(config, shape.dim, shared.activation, norm)
    experts, expert = config.get("num_local_experts", 8), replace(shared, hidden=shape.hidden)
    top_k, balance = config.get("num_experts_per_tok", 2), config.get("router_aux_loss_coef", 0.001)  # may be 0
    moe = spec.MoE(experts=experts, top_k=top_k, expert=expert, shared=shared, balance=balance)
    kinds = config.raw("layer_types", config.raw("layers_block_type", ["mamba"] * shape.layers))
    if not isinstance(kinds, list) or len(kinds) != shape.layers or any(str(kind) not in KINDS for kind in kinds):
        raise ConfigError(
            f"`layer_types` must list {shape.layers} layers, each 'mamba' or 'attention': got {kinds!r} "
            f"({config.where})."
        )
    mixers = [full if KINDS[kind] else layer for kind in kinds]
    return decoder(shape, norm, mixers.__getitem__, moe if experts else shared, **granite.read_scaled(config, shape))


def from_spec(model: spec.Model) -> dict[str, Any]:
    full, ffn = fields.first(model, spec.Attention), model.stack.blocks[0].branches[-1].layer
    moe = ffn if isinstance(ffn, spec.MoE) else None
    shared = ffn if moe is None else moe.shared
    if not isinstance(shared, spec.MLP):
        raise CannotSay("it needs a feed-forward layer for every token")
    mixers = [block.branches[0].layer for block in model.stack.blocks]
    kinds = ["full_attention" if isinstance(one, spec.Attention) else "linear_attention" for one in mixers]
    own = {"layer_types": kinds, "position_embedding_type": None if full.rope is None else "rope"}
    rope = {} if full.rope is None else {"rope_parameters": write_rope(full.rope, full.head_dim)}
    experts = {"num_local_experts": 0} if moe is None else fields.say(moe, chosen(8, 2))
    plain = write_plain(model, full, shared if moe is None else moe.expert) | bamba.write_mamba(model)
    said = write_bias(model) | granite.write_scaled(model) | fields.say(shared, SHARED)
    return plain | said | experts | rope | own


L, OURS = "model.layers.{i}.shared_mlp", f"{BLOCK}.1.layer"
HALVES = tuple(
    name
    for ours in (f"{OURS}.shared", OURS)  # beside experts, or alone
    for name in (
        *fused(f"{L}.input_linear", (f"{ours}.gate", f"{ours}.up"), (1, 1)),
        Name(f"{L}.output_linear", f"{ours}.down"),
    )
)
NAMES = (*OUTER, *PRE_NORMS, *granitemoe.EXPERTS, *HALVES)
FAMILY = Family(
    model_type="granitemoehybrid",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + by_layer(model, lambda x: ATTENTION if isinstance(x, spec.Attention) else bamba.MIXER),
    heads={"GraniteMoeHybridForCausalLM": granite.scaled_language, "GraniteMoeHybridModel": none},
    prefix="model.",
    ignore=IGNORE,
)
