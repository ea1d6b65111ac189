"""Switch Transformers (Fedus et al. 2021): T5 with one expert of many for each token, on every few layers.

The reference lets an expert take at most `expert_capacity` tokens of a row, also at inference, where we never drop any.
In training we bound by a factor of the fair share (§2.2); the key is that factor at the 512 tokens T5 is trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.families import t5
from openbook.models.family import CannotSay, Family, branches_of
from openbook.models.names import Name
from openbook.nn import spec

ROW = 512  # tokens
EXPERT: fields.Fields = {**t5.TABLE[spec.MLP], "activation": ("dense_act_fn", "relu")}
MIXTURE: fields.Fields = {
    "experts": ("num_experts", 8),
    "balance": ("router_aux_loss_coef", 0.001),
    "z_loss": ("router_z_loss_coef", 0.001),
    "jitter": ("router_jitter_noise", 0.01),
}


def with_ffn(stack: spec.Stack, ffns: Sequence[spec.Layer]) -> spec.Stack:
    """The stack with these feed-forward layers, one for each block."""
    blocks = tuple(
        replace(block, branches=(*block.branches[:-1], replace(block.branches[-1], layer=ffn)))
        for block, ffn in zip(stack.blocks, ffns, strict=True)
    )
    return replace(stack, blocks=blocks)


def to_spec(config: Config) -> spec.Model:
    base = t5.to_spec(config)
    config.inert("router_dtype", "router_ignore_padding_tokens", "add_router_probs", "feed_forward_proj")
    config.fixed("tie_word_embeddings", True, True)  # untied, the reference has three embeddings
    config.inert("encoder_sparse_step", "decoder_sparse_step", "add_cross_attention")
    mlp = spec.MLP(gated=False, **fields.take(config, EXPERT))
    said = fields.take(config, MIXTURE)
    capacity = config.size("expert_capacity", 64) * said["experts"] / ROW
    routing = spec.Routing(renormalise=False, bias=config.get("router_bias", False))
    moe = spec.MoE(top_k=1, expert=mlp, routing=routing, capacity=capacity, **said)

    def side(stack: spec.Stack, key: str) -> spec.Stack:
        layers, count = len(stack.blocks), config.get(key, 3)
        step = layers // count if count > 0 else layers
        sparse = [step > 0 and (step == 1 or number % step == 1) for number in range(layers)]
        return with_ffn(stack, [moe if one else mlp for one in sparse])

    assert base.source is not None
    source = replace(base.source, stack=side(base.source.stack, "num_sparse_encoder_layers"))
    return replace(base, stack=side(base.stack, "num_sparse_decoder_layers"), source=source)


def mixture(model: spec.Model) -> spec.MoE:
    """The experts, of either side."""
    if model.source is None:
        raise CannotSay("it needs an encoder")
    layers = [branch.layer for branch in (*branches_of(model.source.stack), *branches_of(model.stack))]
    found = [layer for layer in layers if isinstance(layer, spec.MoE)]
    if not found or found[0].capacity is None:
        raise CannotSay("it needs experts with a capacity")
    return found[0]


def from_spec(model: spec.Model) -> dict[str, Any]:
    moe = mixture(model)
    assert model.source is not None
    assert moe.capacity is not None
    said = t5.from_spec(replace(model, stack=with_ffn(model.stack, [moe.expert] * len(model.stack.blocks))))
    del said["feed_forward_proj"]

    def count(stack: spec.Stack) -> int:
        found = sum(isinstance(block.branches[-1].layer, spec.MoE) for block in stack.blocks)
        return found or len(stack.blocks) + 1  # more than there are layers means none

    own = {
        "num_sparse_encoder_layers": count(model.source.stack),
        "num_sparse_decoder_layers": count(model.stack),
        "router_bias": moe.routing.bias,
        "expert_capacity": round(moe.capacity * ROW / moe.experts),
    }
    return said | fields.say(moe.expert, EXPERT) | fields.say(moe, MIXTURE) | own


INNER = tuple(
    Name(f"{theirs}.block.{{i}}.layer.{last}.mlp.{a}", f"{ours}.blocks.{{i}}.branches.{last}.layer.{b}")
    for theirs, ours, last in t5.SIDES
    for a, b in (
        ("router.classifier", "router"),
        ("experts.expert_{e}.wi.weight", "experts.up"),
        ("experts.expert_{e}.wo.weight", "experts.down"),
        ("wi", "up"),
        ("wo", "down"),
    )
)
FAMILY = Family(
    model_type="switch_transformers",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: t5.OUTER + INNER,
    heads={"SwitchTransformersForConditionalGeneration": t5.language, "SwitchTransformersModel": lambda _: ()},
    ignore=t5.FAMILY.ignore,
    sizes=t5.FAMILY.sizes,
)
