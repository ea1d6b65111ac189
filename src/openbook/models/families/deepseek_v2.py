"""DeepSeek V2 and V2-Lite (DeepSeek-AI 2024a): latent attention (§2.1), and softmax routing within the best groups."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models import latent
from openbook.models.config import Config
from openbook.models.family import Family, classes_of_last, language, none
from openbook.models.parts import IGNORE
from openbook.nn import spec

ATTENTION = {"q_lora_rank": 1536, "qk_nope_head_dim": 128, "v_head_dim": 128}
EXPERTS = {"n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1407, "n_shared_experts": 2}
METHODS = ("greedy", "group_limited_greedy")


def to_spec(config: Config) -> spec.Model:
    for key, only in (("norm_topk_prob", False), ("scoring_func", "softmax"), ("mlp_bias", False)):
        config.fixed(key, only, only)
    method = config.get("topk_method", "greedy")
    if method not in METHODS:
        raise ConfigError(f"`topk_method` {method!r} of {config.where} is none of {', '.join(METHODS)}.")
    groups, best = config.size("n_group", 1), config.size("topk_group", 1)
    if method == "greedy":
        groups = best = 1
    routing = spec.Routing(renormalise=False, groups=groups, top_groups=best)
    moe = latent.read_routed(config, routing, EXPERTS)
    return latent.read_decoder(config, latent.read_latent(config, ATTENTION, context=2048), moe, dense=0, context=2048)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = latent.write_latent(model) | latent.write_routed(model)
    return said | {"topk_method": METHODS[said.get("n_group", 1) > 1]}


FAMILY = Family(
    model_type="deepseek_v2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: latent.LATENT + latent.FFN,
    heads={
        "DeepseekV2ForCausalLM": language,
        "DeepseekV2Model": none,
        "DeepseekV2ForSequenceClassification": classes_of_last,
    },
    prefix="model.",
    ignore=IGNORE,
    sizes=latent.LATENT_SIZES,
)
