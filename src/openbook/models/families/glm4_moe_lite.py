"""GLM-4.7-Flash: GLM-4.5's experts, with DeepSeek's latent attention."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models import latent
from openbook.models.config import Config
from openbook.models.families.deepseek_v3 import from_spec as from_spec3
from openbook.models.family import Family, none
from openbook.models.parts import IGNORE
from openbook.nn import spec

ATTENTION = {"q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256}
EXPERTS = {"n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536, "n_shared_experts": 1}


def to_spec(config: Config) -> spec.Model:
    layers = config.layers("num_hidden_layers")
    first = config.get("first_k_dense_replace", 1)
    kinds = config.raw("mlp_layer_types", ["dense" if number < first else "sparse" for number in range(layers)])
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in ("dense", "sparse") for kind in kinds):
        raise ConfigError(f"`mlp_layer_types` must list 'dense' or 'sparse' for {layers} layers ({config.where}).")
    attention = latent.read_latent(config, ATTENTION, config.get("rope_interleave", True), context=202752)
    moe = latent.read_routed(config, latent.read_groups(config, groups=1, top_groups=1), EXPERTS, scale=1.8)
    mlp = spec.MLP(hidden=config.size("intermediate_size"), activation=moe.expert.activation)
    ffns = [moe if kind == "sparse" else mlp for kind in kinds]
    return latent.build(config, attention, ffns.__getitem__, 1e-5, context=202752)


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = from_spec3(model)
    del said["first_k_dense_replace"]
    ffns = [block.branches[-1].layer for block in model.stack.blocks]
    return said | {"mlp_layer_types": ["sparse" if isinstance(layer, spec.MoE) else "dense" for layer in ffns]}


FAMILY = Family(
    model_type="glm4_moe_lite",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: latent.ahead_names(model, latent.LATENT + latent.FFN),
    heads={"Glm4MoeLiteForCausalLM": latent.with_ahead(to_spec), "Glm4MoeLiteModel": none},
    prefix="model.",
    ignore=IGNORE + latent.COPIES,
    sizes=latent.LATENT_SIZES,
)
