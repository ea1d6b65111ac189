"""gpt-oss (OpenAI 2025): sinks, windows on every other layer, experts with biases and a clipped, shifted gate."""

from __future__ import annotations

from typing import Any

from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import chosen, mixture_of
from openbook.models.family import CannotSay, Family
from openbook.models.modern import attention, biased, decoder_heads, rms, write, write_bias
from openbook.models.names import Name, fused
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, decoder, read_shape, windows, write_windows
from openbook.nn import spec

YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


ALPHA = 1.702  # of a gate with that factor


def to_spec(config: Config) -> spec.Model:
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        config.data["rope_parameters"] = YARN | {"rope_theta": config.get("rope_theta", 150000.0)}
    shape = read_shape(config, context=131072, kv_heads=8, head_dim=64)
    found = windows(config, shape.layers, lambda number: number % 2 == 0, config.get("sliding_window", 128))
    layers = [attention(config, shape, window, sinks=True, **biased(config, True)) for window in found]
    config.fixed("swiglu_alpha", ALPHA, ALPHA)
    config.fixed("hidden_act", "silu", "silu")
    config.inert("initial_context_length")  # another word for what is read above
    rows = chosen(128, 4, config.spelled("num_local_experts", "num_experts"))
    rows = {**rows, "top_k": (config.spelled("num_experts_per_tok", "experts_per_token"), 4)}
    limit = config.get("swiglu_limit", 7.0)
    moe = spec.MoE(
        expert=spec.MLP(hidden=shape.hidden, activation="quick_gelu", bias=True, limit=limit, offset=1.0),
        routing=spec.Routing(bias=True),
        **fields.take(config, rows),
    )
    return decoder(shape, rms(config, 1e-5), layers.__getitem__, moe)


def from_spec(model: spec.Model) -> dict[str, Any]:
    moe = mixture_of(model)
    if moe.expert.activation != "quick_gelu" or moe.expert.limit is None:
        raise CannotSay("its experts have no clipped gate")
    own = {"hidden_act": "silu", "swiglu_alpha": ALPHA, "swiglu_limit": moe.expert.limit}
    return write(model) | write_windows(model) | write_bias(model) | fields.say(moe, chosen(128, 4)) | own


L, OURS = "model.layers.{i}.mlp", f"{BLOCK}.1.layer"


def names(model: spec.Model) -> tuple[Name, ...]:
    hidden = mixture_of(model).expert.hidden
    up, ours = f"{L}.experts.gate_up_proj", f"{OURS}.experts"
    biases = (f"{ours}.gate_bias", f"{ours}.up_bias")  # one row of each in turn
    return (
        *BASE,
        *PRE_NORMS,
        Name("model.layers.{i}.self_attn.sinks", f"{BLOCK}.0.layer.sinks"),
        Name(f"{L}.router", f"{OURS}.router"),
        *fused(up, (f"{ours}.gate", f"{ours}.up"), (1, 1), hidden, transpose=True, stacked=True),
        *fused(f"{up}_bias", biases, (1, 1), hidden, stacked=True),
        Name(f"{L}.experts.down_proj", f"{ours}.down", True, stacked=True),
        Name(f"{L}.experts.down_proj_bias", f"{ours}.down_bias"),
    )


FAMILY = Family(
    model_type="gpt_oss",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=decoder_heads("GptOss"),
    prefix="model.",
    ignore=IGNORE,
)
