"""Random configurations of the classic decoders, for law 1 on shapes that nobody chose."""

from __future__ import annotations

import random
from typing import Any

Drawn = tuple[str, str, dict[str, Any], str]
ACTIVATIONS = ["silu", "gelu", "gelu_new", "relu", "gelu_fast", "quick_gelu", "tanh"]


def coin(draw: random.Random) -> bool:
    return draw.random() < 0.5


def base(draw: random.Random, size: int = 2, heads: tuple[int, ...] = (1, 3, 4, 6)) -> dict[str, Any]:
    """Sizes under their usual keys; head widths are multiples of `size`."""
    count = draw.choice(heads)
    return {
        "vocab_size": draw.choice([61, 97]),
        "hidden_size": count * size * draw.choice([1, 3, 5]),
        "num_hidden_layers": draw.choice([1, 3]),
        "num_attention_heads": count,
        "tie_word_embeddings": coin(draw),
    }


def renamed(values: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def gpt(draw: random.Random, size: int = 2, heads: tuple[int, ...] = (1, 3, 4, 6)) -> dict[str, Any]:
    """The same under GPT-2's keys."""
    values = renamed(
        base(draw, size, heads), hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head"
    )
    return values | {"n_positions": draw.choice([24, 64]), "layer_norm_epsilon": 1e-3}


def turned(draw: random.Random) -> dict[str, Any]:
    """Half or all of heads whose width is a multiple of four."""
    share, theta = draw.choice([0.5, 1.0]), draw.choice([100.0, 1e4])
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


def openai_gpt(draw: random.Random) -> Drawn:
    return (
        "OpenAIGPTConfig",
        "OpenAIGPTLMHeadModel",
        gpt(draw) | {"afn": draw.choice(["relu", "silu", "gelu"])},
        "decoder",
    )


def gpt_neo(draw: random.Random) -> Drawn:
    values = renamed(base(draw), num_hidden_layers="num_layers", num_attention_heads="num_heads")
    special = {
        "attention_types": [[[draw.choice(["global", "local"])], 1] for _ in range(values["num_layers"])],
        "window_size": draw.choice([1, 2, 7, 100]),
        "intermediate_size": draw.choice([None, 1, 19]),
        "activation_function": draw.choice(ACTIVATIONS),
        "max_position_embeddings": 32,
        "layer_norm_epsilon": 1e-3,
    }
    return "GPTNeoConfig", "GPTNeoForCausalLM", values | special, "decoder"


def gptj(draw: random.Random) -> Drawn:
    values = gpt(draw)
    size = values["n_embd"] // values["n_head"]
    special = {"rotary_dim": draw.randrange(2, size + 1, 2), "activation_function": draw.choice(ACTIVATIONS)}
    return "GPTJConfig", "GPTJForCausalLM", values | special | {"n_inner": draw.choice([None, 1, 19])}, "decoder"


def codegen(draw: random.Random) -> Drawn:
    values = gpt(draw, heads=(4, 8, 12))
    return "CodeGenConfig", "CodeGenForCausalLM", values | {"rotary_dim": 2}, "decoder"


def gpt_bigcode(draw: random.Random) -> Drawn:
    special = {
        "multi_query": coin(draw),
        "scale_attn_weights": coin(draw),
        "n_inner": draw.choice([None, 1, 19]),
        "activation_function": draw.choice(ACTIVATIONS),
    }
    return "GPTBigCodeConfig", "GPTBigCodeForCausalLM", gpt(draw, size=3) | special, "decoder"


def gpt_neox(draw: random.Random) -> Drawn:
    special = {
        "intermediate_size": draw.choice([1, 19]),
        "use_parallel_residual": coin(draw),
        "attention_bias": coin(draw),
        "hidden_act": draw.choice(ACTIVATIONS),
        "rope_parameters": turned(draw),
        "layer_norm_eps": 1e-3,
    }
    return "GPTNeoXConfig", "GPTNeoXForCausalLM", base(draw, size=4) | special, "decoder"


def falcon(draw: random.Random) -> Drawn:
    new = coin(draw)
    special = {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": draw.choice([None, 1, 2]) if new else None,
        "parallel_attn": new or coin(draw),
        "multi_query": coin(draw),
        "bias": coin(draw),
        "ffn_hidden_size": draw.choice([None, 1, 19]),
        "activation": draw.choice(ACTIVATIONS),
        "layer_norm_epsilon": 1e-3,
    }
    values = base(draw)
    heads = values["num_attention_heads"]
    if new:
        special["num_kv_heads"] = draw.choice([count for count in (1, 2, 3, 6) if heads % count == 0])
    return "FalconConfig", "FalconForCausalLM", values | special, "decoder"


def bloom(draw: random.Random) -> Drawn:
    values = renamed(base(draw, 3, (1, 2, 5, 7, 8, 12)), num_hidden_layers="n_layer", num_attention_heads="n_head")
    return "BloomConfig", "BloomForCausalLM", values | {"layer_norm_epsilon": 1e-3}, "decoder"


def mpt(draw: random.Random) -> Drawn:
    values = renamed(
        base(draw, 3, (1, 2, 5, 7, 8, 12)),
        hidden_size="d_model",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
    )
    nested = {"clip_qkv": draw.choice([None, 0.5]), "softmax_scale": draw.choice([None, 0.3])}
    return "MptConfig", "MptForCausalLM", values | {"attn_config": nested, "layer_norm_epsilon": 1e-3}, "decoder"


def opt(draw: random.Random) -> Drawn:
    special = {
        "ffn_dim": draw.choice([1, 19]),
        "do_layer_norm_before": coin(draw),
        "word_embed_proj_dim": draw.choice([None, 5]),
        "enable_bias": coin(draw),
        "activation_function": draw.choice(ACTIVATIONS),
        "max_position_embeddings": 32,
    }
    return "OPTConfig", "OPTForCausalLM", base(draw, size=3) | special, "decoder"


def phi(draw: random.Random) -> Drawn:
    values = base(draw, size=4)
    heads = values["num_attention_heads"]
    special = {
        "intermediate_size": draw.choice([1, 19]),
        "num_key_value_heads": draw.choice([count for count in (1, 2, 3, 6) if heads % count == 0]),
        "qk_layernorm": coin(draw),
        "hidden_act": draw.choice(ACTIVATIONS),
        "rope_parameters": turned(draw),
        "layer_norm_eps": 1e-3,
        "pad_token_id": None,
    }
    return "PhiConfig", "PhiForCausalLM", values | special, "decoder"


DRAWS = [openai_gpt, gpt_neo, gptj, codegen, gpt_bigcode, gpt_neox, falcon, bloom, mpt, opt, phi]
