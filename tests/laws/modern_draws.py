"""Random configurations of the newer dense decoders, for law 1 on shapes that nobody chose."""

from __future__ import annotations

import random
from typing import Any

Drawn = tuple[str, str, dict[str, Any], str]


def coin(draw: random.Random) -> bool:
    return draw.random() < 0.5


def base(
    draw: random.Random, eps: str = "rms_norm_eps", act: tuple[str, ...] = ("silu", "gelu", "relu")
) -> dict[str, Any]:
    """Sizes under their usual keys; a head is a fraction of the width."""
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 3])
    return {
        "vocab_size": draw.choice([61, 97]),
        "hidden_size": heads * draw.choice([4, 8, 12]),
        "intermediate_size": draw.choice([5, 17, 64]),
        "num_hidden_layers": draw.choice([1, 2, 4]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": draw.choice([32, 64]),
        eps: draw.choice([1e-6, 1e-3]),
        "hidden_act": draw.choice(act),
        "tie_word_embeddings": coin(draw),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([100.0, 1e4])},
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def share(values: dict[str, Any], part: float) -> dict[str, Any]:
    return values | {"rope_parameters": values["rope_parameters"] | {"partial_rotary_factor": part}}


def kinds(draw: random.Random, values: dict[str, Any], local: str = "sliding_attention") -> list[str]:
    return [draw.choice(["full_attention", local]) for _ in range(values["num_hidden_layers"])]


def starcoder2(draw: random.Random) -> Drawn:
    special = {"use_bias": coin(draw), "sliding_window": draw.choice([None, 1, 7, 100])}
    return "Starcoder2Config", "Starcoder2ForCausalLM", base(draw, "norm_epsilon") | special, "decoder"


def phi3(draw: random.Random) -> Drawn:
    values = base(draw) | {"sliding_window": draw.choice([None, 1, 7])}
    if coin(draw):
        size = values["hidden_size"] // values["num_attention_heads"] // 2
        factors = {key: [1 + 3 * draw.random() for _ in range(size)] for key in ("short_factor", "long_factor")}
        original = draw.choice([8, 16])
        rules = {"rope_type": "longrope", "rope_theta": 1e4, **factors, "original_max_position_embeddings": original}
        values |= {"rope_parameters": rules, "original_max_position_embeddings": original}
    return "Phi3Config", "Phi3ForCausalLM", values, "decoder"


def olmo(draw: random.Random) -> Drawn:
    values = base(draw) | {"attention_bias": coin(draw), "clip_qkv": draw.choice([None, 0.3, 8.0])}
    del values["rms_norm_eps"]
    return "OlmoConfig", "OlmoForCausalLM", values, "decoder"


def olmo2(draw: random.Random) -> Drawn:
    return "Olmo2Config", "Olmo2ForCausalLM", base(draw) | {"attention_bias": coin(draw)}, "decoder"


def cohere(draw: random.Random) -> Drawn:
    special = {"use_qk_norm": coin(draw), "attention_bias": coin(draw), "logit_scale": draw.choice([0.1, 2.0])}
    return "CohereConfig", "CohereForCausalLM", base(draw, "layer_norm_eps") | special, "decoder"


def cohere2(draw: random.Random) -> Drawn:
    values = base(draw, "layer_norm_eps")
    special = {"layer_types": kinds(draw, values), "sliding_window": draw.choice([1, 5]), "attention_bias": coin(draw)}
    return "Cohere2Config", "Cohere2ForCausalLM", values | special, "decoder"


def glm(draw: random.Random) -> Drawn:
    name = draw.choice(["Glm", "Glm4"])
    values = share(base(draw), draw.choice([0.5, 1.0]))
    return (
        f"{name}Config",
        f"{name}ForCausalLM",
        values | {"head_dim": draw.choice([4, 12]), "attention_bias": coin(draw)},
        "decoder",
    )


def smollm3(draw: random.Random) -> Drawn:
    values = base(draw)
    marks = [draw.choice([0, 1]) for _ in range(values["num_hidden_layers"])]
    special = {"no_rope_layers": [*marks[:-1], 1], "use_sliding_window": coin(draw), "sliding_window": 3}
    return "SmolLM3Config", "SmolLM3ForCausalLM", values | special | {"mlp_bias": coin(draw)}, "decoder"


def granite(draw: random.Random) -> Drawn:
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    scales = {name: draw.choice([0.3, 1.0, 3.0, 7.0]) for name in names}
    return "GraniteConfig", "GraniteForCausalLM", base(draw) | scales | {"attention_bias": coin(draw)}, "decoder"


def exaone4(draw: random.Random) -> Drawn:
    values = base(draw)
    window = draw.choice([None, 1, 5])
    layers = kinds(draw, values) if window else ["full_attention"] * values["num_hidden_layers"]
    return "Exaone4Config", "Exaone4ForCausalLM", values | {"sliding_window": window, "layer_types": layers}, "decoder"


def nemotron(draw: random.Random) -> Drawn:
    values = share(base(draw, "norm_eps", ("relu2", "gelu")), draw.choice([0.5, 1.0]))
    return "NemotronConfig", "NemotronForCausalLM", values | {"mlp_bias": coin(draw)}, "decoder"


def llama4(draw: random.Random) -> Drawn:
    values, experts = base(draw), draw.choice([1, 3, 5])
    special = {
        "head_dim": draw.choice([4, 10]),
        "intermediate_size_mlp": draw.choice([7, 40]),
        "num_local_experts": experts,
        "num_experts_per_tok": draw.randint(1, experts),
        "moe_layers": [0],
        "no_rope_layers": [1] + [draw.choice([0, 1]) for _ in range(values["num_hidden_layers"] - 1)],
        "attention_chunk_size": draw.choice([None, 1, 6, 30]),
        "use_qk_norm": coin(draw),
        "attn_temperature_tuning": coin(draw),
        "floor_scale": draw.choice([1, 4, 100]),
        "attn_scale": draw.choice([0.1, 0.5]),
        "attention_bias": coin(draw),
    }
    return "Llama4TextConfig", "Llama4ForCausalLM", values | special, "decoder"


DRAWS = [starcoder2, phi3, olmo, olmo2, cohere, cohere2, glm, smollm3, granite, exaone4, nemotron, llama4]
