"""OLMoE (Muennighoff et al. 2024): 64 small experts, eight for each token, and q and k normalised over all heads."""

from __future__ import annotations

from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import chosen, expert_names, mixture_of
from openbook.models.family import Family
from openbook.models.modern import attention, biased, decoder_heads, rms, write, write_bias
from openbook.models.parts import BASE, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=4096)
    norm = rms(config, 1e-5)
    config.fixed("clip_qkv", None, None)  # the reference clips after the norms
    layer = attention(config, shape, norm=spec.QueryKeyNorm(norm=norm, over="width"), **biased(config))
    key = config.spelled("num_experts", "num_local_experts")
    expert = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    routing = spec.Routing(renormalise=config.get("norm_topk_prob", False))
    moe = spec.MoE(expert=expert, routing=routing, **fields.take(config, chosen(64, 8, key, 0.01)))
    return decoder(shape, norm, lambda _: layer, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    moe = mixture_of(model)
    own = fields.say(moe, chosen(64, 8, "num_experts")) | {"norm_topk_prob": moe.routing.renormalise}
    return write(model) | write_bias(model) | own


FAMILY = Family(
    model_type="olmoe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + expert_names("model.layers.{i}.mlp"),
    heads=decoder_heads("Olmoe", tokens=False),
    prefix="model.",
    ignore=IGNORE,
)
