"""DeepSeek V3 and R1 (DeepSeek-AI 2024b): latent attention, and experts balanced by a bias instead of a loss."""

from __future__ import annotations

from typing import Any

from openbook.models import latent
from openbook.models.config import Config
from openbook.models.family import Family, classes_of_last, none
from openbook.models.parts import IGNORE
from openbook.nn import spec

ATTENTION = {"q_lora_rank": 1536, "qk_nope_head_dim": 128, "v_head_dim": 128}
EXPERTS = {"n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1}


def to_spec(config: Config) -> spec.Model:
    attention = latent.read_latent(config, ATTENTION, config.get("rope_interleave", True))
    moe = latent.read_routed(config, latent.read_groups(config, groups=8, top_groups=4), EXPERTS, scale=2.5)
    return latent.read_decoder(config, attention, moe, dense=3)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = model.stack.blocks[0].branches[0].layer
    said = latent.write_latent(model) | latent.write_routed(model) | latent.write_ahead(model)
    return said | {"rope_interleave": isinstance(attention, spec.LatentAttention) and attention.rope.neighbours}


FAMILY = Family(
    model_type="deepseek_v3",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: latent.ahead_names(model, latent.LATENT + latent.FFN),
    heads={
        "DeepseekV3ForCausalLM": latent.with_ahead(to_spec),
        "DeepseekV3Model": none,
        "DeepseekV3ForSequenceClassification": classes_of_last,
    },
    prefix="model.",
    ignore=IGNORE + latent.COPIES,
    sizes=latent.LATENT_SIZES,
)
