"""GLM-4-0414 (2025): GLM-4 with norms before and after each layer."""

from __future__ import annotations

from openbook.models.families import glm
from openbook.models.family import Family
from openbook.models.modern import FUSED_GATED, decoder_heads
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, IGNORE

NORMS = (
    Name("model.layers.{i}.input_layernorm", f"{BLOCK}.0.norm"),
    Name("model.layers.{i}.post_self_attn_layernorm", f"{BLOCK}.0.post_norm"),
    Name("model.layers.{i}.post_attention_layernorm", f"{BLOCK}.1.norm"),
    Name("model.layers.{i}.post_mlp_layernorm", f"{BLOCK}.1.post_norm"),
)
FAMILY = Family(
    model_type="glm4",
    to_spec=lambda config: glm.to_spec(config, "both"),
    from_spec=glm.from_spec,
    names=lambda _: BASE + NORMS + FUSED_GATED,
    heads=decoder_heads("Glm4"),
    prefix="model.",
    ignore=IGNORE,
)
