"""GLM-4.5 to 4.7 (GLM-4.5 Team 2025): grouped queries, half of each head turned, DeepSeek V3's routing."""

from __future__ import annotations

from typing import Any

from openbook.models import latent
from openbook.models.config import Config, share_of
from openbook.models.experts import mixture_of
from openbook.models.family import Family, layers_of, none
from openbook.models.modern import attention
from openbook.models.parts import BASE, IGNORE, read_shape, write_decoder
from openbook.nn import spec

EXPERTS = {"n_routed_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "n_shared_experts": 1}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8)
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-5))
    normed = norm if config.get("use_qk_norm", False) else None
    layer = attention(config, shape, share=0.5, bias=config.get("attention_bias", False), norm=normed)
    moe = latent.read_routed(config, latent.read_groups(config, groups=1, top_groups=1), EXPERTS)
    return latent.read_decoder(config, layer, moe, dense=1, eps=1e-5, context=shape.context)


def from_spec(model: spec.Model) -> dict[str, Any]:
    mixture_of(model)  # without experts it is a plainer family's
    layer: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    said = write_decoder(model) | latent.write_routed(model) | latent.write_ahead(model)
    if layer.rope is not None:
        said["rope_parameters"]["partial_rotary_factor"] = share_of(layer.rope, layer.head_dim)
    return said | {"attention_bias": layer.bias, "use_qk_norm": layer.norm is not None}


FAMILY = Family(
    model_type="glm4_moe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: latent.ahead_names(model, BASE + latent.FFN),
    heads={"Glm4MoeForCausalLM": latent.with_ahead(to_spec), "Glm4MoeModel": none},
    prefix="model.",
    ignore=IGNORE + latent.COPIES,
)
