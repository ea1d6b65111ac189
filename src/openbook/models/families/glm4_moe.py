"""GLM-4.5 to 4.7 (GLM-4.5 Team 2025): grouped queries, half of each head turned, DeepSeek V3's routing."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config, read_rope, share_of
from openbook.models.experts import mixture_of
from openbook.models.family import Family, layers_of, none
from openbook.models.latent import (
    COPIES,
    FFN,
    ahead_names,
    read_decoder,
    read_groups,
    read_routed,
    with_ahead,
    write_ahead,
    write_routed,
)
from openbook.models.parts import BASE, IGNORE, read_shape, write_decoder
from openbook.nn import spec

EXPERTS = {"n_routed_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "n_shared_experts": 1}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8)
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-5))
    attention = spec.Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope=read_rope(config, shape.head_dim, shape.context, share=0.5),
        bias=config.get("attention_bias", False),
        norm=norm if config.get("use_qk_norm", False) else None,
        dropout=config.get("attention_dropout", 0.0),
    )
    moe = read_routed(config, read_groups(config, groups=1, top_groups=1), EXPERTS)
    return read_decoder(config, attention, moe, dense=1, eps=1e-5, context=shape.context)


def from_spec(model: spec.Model) -> dict[str, Any]:
    mixture_of(model)  # without experts it is a plainer family's
    attention: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    said = write_decoder(model) | write_routed(model) | write_ahead(model)
    if attention.rope is not None:
        said["rope_parameters"]["partial_rotary_factor"] = share_of(attention.rope, attention.head_dim)
    return said | {"attention_bias": attention.bias, "use_qk_norm": attention.norm is not None}


FAMILY = Family(
    model_type="glm4_moe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: ahead_names(model, BASE + FFN),
    heads={"Glm4MoeForCausalLM": with_ahead(to_spec), "Glm4MoeModel": none},
    prefix="model.",
    ignore=IGNORE + COPIES,
)
