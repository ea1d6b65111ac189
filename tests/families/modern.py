"""The newer dense decoders with rotary positions."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.families.case import Case
from tests.families.core import LLAMA

LONG = {  # head_dim 8, three quarters of it turned
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.5, 4.0],
    "original_max_position_embeddings": 23,
}


LAYER_NORM = ("Starcoder2", "Olmo", "Cohere", "Cohere2", "Nemotron")  # these have no `rms_norm_eps`


def _case(name: str, kind: str, **values: Any) -> Case:
    shared = {key: value for key, value in LLAMA.items() if kind not in LAYER_NORM or key != "rms_norm_eps"}
    return Case(
        name, f"{kind}Config", f"{kind}ForCausalLM", {**deepcopy(shared), **values}
    )  # the reference writes into rules


def _llama4(name: str, **values: Any) -> Case:
    sizes = {
        "num_hidden_layers": 4,
        "head_dim": 10,
        "intermediate_size": 36,
        "intermediate_size_mlp": 70,
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "no_rope_layer_interval": 3,
        "attention_chunk_size": 6,
        "floor_scale": 23,  # the reference counts padding on the left too
        "attn_scale": 0.4,
    }
    return Case(name, "Llama4TextConfig", "Llama4ForCausalLM", {**deepcopy(LLAMA), **sizes, **values})


CASES = [
    _case("starcoder2", "Starcoder2", norm_epsilon=4e-5, sliding_window=5, hidden_act="gelu_pytorch_tanh"),
    _case("starcoder2-plain", "Starcoder2", use_bias=False, tie_word_embeddings=False, hidden_act="relu"),
    _case("phi3", "Phi3", sliding_window=6),
    _case("phi3-longrope", "Phi3", original_max_position_embeddings=23, rope_parameters=LONG, resid_pdrop=0.1),
    _case("olmo", "Olmo", clip_qkv=0.6),
    _case("olmo-biased", "Olmo", attention_bias=True, tie_word_embeddings=True),
    _case("olmo2", "Olmo2"),
    _case("olmo2-biased", "Olmo2", attention_bias=True, head_dim=10, num_key_value_heads=3),
    _case(
        "olmo3",
        "Olmo3",
        sliding_window=4,
        num_hidden_layers=4,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    ),
    _case("cohere", "Cohere", layer_norm_eps=3e-5, logit_scale=0.3),
    _case("cohere-qk-norm", "Cohere", use_qk_norm=True, attention_bias=True, tie_word_embeddings=False),
    _case("cohere2", "Cohere2", sliding_window=5, num_hidden_layers=4, logit_scale=0.4, layer_norm_eps=3e-5),
    _case("cohere2-full", "Cohere2", layer_types=["full_attention", "sliding_attention", "full_attention"]),
    _case("glm", "Glm", head_dim=12, hidden_size=40),
    _case(
        "glm-whole",
        "Glm",
        head_dim=8,
        attention_bias=False,
        rope_parameters={"rope_theta": 5000.0, "partial_rotary_factor": 1.0},
    ),
    _case("glm4", "Glm4", head_dim=12, rope_parameters={"rope_theta": 900.0, "partial_rotary_factor": 0.5}),
    _case("smollm3", "SmolLM3", no_rope_layer_interval=2, mlp_bias=True),
    _case("smollm3-window", "SmolLM3", no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=5),
    _case(
        "granite",
        "Granite",
        embedding_multiplier=3.0,
        attention_multiplier=0.3,
        residual_multiplier=0.4,
        logits_scaling=7.0,
        mlp_bias=True,
    ),
    _case("ministral", "Ministral", head_dim=10, sliding_window=5),
    _case(
        "ministral-mixed",
        "Ministral",
        head_dim=8,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    _case(
        "ministral3",
        "Ministral3",
        head_dim=10,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 7,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    ),
    _case("gemma", "Gemma", head_dim=10, hidden_act="gelu_pytorch_tanh"),
    _case("gemma-biased", "Gemma", head_dim=12, attention_bias=True, num_key_value_heads=1, hidden_act="relu"),
    _case("exaone4", "Exaone4", sliding_window=5, sliding_window_pattern=3, num_hidden_layers=4),
    _case("exaone4-full", "Exaone4", sliding_window=None, layer_types=["full_attention"] * 3),
    _case("seed_oss", "SeedOss", head_dim=10, attention_dropout=0.0),
    _case("seed_oss-biased", "SeedOss", head_dim=8, attention_bias=False, attention_out_bias=True, mlp_bias=True),
    _case("arcee", "Arcee", mlp_bias=True),
    _case(
        "nemotron",
        "Nemotron",
        norm_eps=4e-5,
        mlp_bias=True,
        rope_parameters={"rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    ),
    _llama4("llama4", num_experts_per_tok=2, interleave_moe_layer_step=2),
    _llama4("llama4-every", attention_bias=True, use_qk_norm=False, no_rope_layers=[0, 1, 0, 1]),
    _llama4("llama4-even", moe_layers=[0, 3], attn_temperature_tuning=False, attention_chunk_size=None),
    _case(
        "llama-proportional",
        "Llama",
        head_dim=12,
        rope_parameters={
            "rope_type": "proportional",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.5,
            "factor": 2.0,
        },
    ),
]
