"""dots.llm1 (Huo et al. 2025): Qwen 3's attention with DeepSeek V3's experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models.config import Config
from openbook.models.experts import mixture_of
from openbook.models.family import Family, language, layers_of, none
from openbook.models.latent import FFN, read_decoder, read_groups, read_routed, write_routed
from openbook.models.parts import (
    BASE,
    IGNORE,
    attention_of,
    read_shape,
    windows,
    write_decoder,
    write_windows,
)
from openbook.nn import spec

EXPERTS = {"n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_shared_experts": 0}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048, kv_heads=32)
    norm, bias = spec.Norm(eps=config.get("rms_norm_eps", 1e-6)), config.get("attention_bias", False)
    window = config.get("sliding_window", None, int) if "sliding_window" in config.data else 4096
    most = config.get("max_window_layers", 62)
    found = windows(config, shape.layers, lambda number: window is not None and number >= most, window)
    layers = [attention_of(config, shape, one, norm=norm, bias=bias, out_bias=bias) for one in found]
    routing = replace(read_groups(config, groups=1, top_groups=1), renormalise=config.get("norm_topk_prob", False))
    moe = read_routed(config, routing, EXPERTS)
    return read_decoder(config, layers.__getitem__, moe, dense=0, context=2048)


def from_spec(model: spec.Model) -> dict[str, Any]:
    mixture_of(model)  # without experts it is a plainer family's
    said = write_decoder(model) | write_routed(model) | write_windows(model)
    return said | {"attention_bias": layers_of(model.stack, spec.Attention)[0].bias}


FAMILY = Family(
    model_type="dots1",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + FFN,
    heads={"Dots1ForCausalLM": language, "Dots1Model": none},
    prefix="model.",
    ignore=IGNORE,
)
