"""The DeepSeek line: latent attention with and without a low rank of queries, routed experts, YaRN's sharper scores."""

from __future__ import annotations

from typing import Any

from tests.families.case import Case

SMALL: dict[str, Any] = {
    "vocab_size": 113,
    "hidden_size": 44,
    "intermediate_size": 70,
    "moe_intermediate_size": 18,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "q_lora_rank": 13,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 9,
    "qk_rope_head_dim": 6,
    "v_head_dim": 11,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 8000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 20.0,
    "beta_slow": 2.0,
    "mscale": 0.9,
    "mscale_all_dim": 0.7,
}


def _own(values: dict[str, Any]) -> dict[str, Any]:
    """With rotary rules of its own, which the reference's configuration writes into."""
    return {**values, "rope_parameters": dict(values["rope_parameters"])}


def _v2(name: str, **values: Any) -> Case:
    # The reference wants even strides of the turned part, and heads that divide the width.
    small = {**SMALL, "hidden_size": 45, "qk_nope_head_dim": 8, "norm_topk_prob": False}
    return Case(name, "DeepseekV2Config", "DeepseekV2ForCausalLM", _own({**small, **values}))


def _glm(name: str, **values: Any) -> Case:
    latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    small = {key: value for key, value in SMALL.items() if key not in latent}
    small |= {"hidden_size": 42, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12}
    return Case(name, "Glm4MoeConfig", "Glm4MoeForCausalLM", _own({**small, "num_nextn_predict_layers": 0, **values}))


def _dots(name: str, **values: Any) -> Case:
    latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    small = {key: value for key, value in SMALL.items() if key not in latent}
    small |= {"hidden_size": 42, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
    return Case(name, "Dots1Config", "Dots1ForCausalLM", _own({**small, **values}))


def _lite(name: str, **values: Any) -> Case:
    small = {key: value for key, value in SMALL.items() if key != "first_k_dense_replace"}
    return Case(name, "Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM", _own({**small, **values}))


def _v3(name: str, **values: Any) -> Case:
    return Case(
        name, "DeepseekV3Config", "DeepseekV3ForCausalLM", _own({**SMALL, "num_nextn_predict_layers": 0, **values})
    )


CASES = [
    _v3("deepseek3-dense", first_k_dense_replace=3, num_hidden_layers=3),
    _v3("deepseek3-dense-plain-q", first_k_dense_replace=2, num_hidden_layers=2, q_lora_rank=None, attention_bias=True),
    _v3("deepseek3"),
    _v3("deepseek3-yarn", max_position_embeddings=32, rope_parameters=YARN, rope_interleave=False),
    _v3(
        "deepseek3-odd",
        q_lora_rank=None,
        attention_bias=True,
        first_k_dense_replace=0,
        norm_topk_prob=False,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        hidden_act="gelu",
        tie_word_embeddings=True,
    ),
    _v2("deepseek2", topk_method="group_limited_greedy", rope_parameters=YARN, max_position_embeddings=32),
    _v2("deepseek2-lite", q_lora_rank=None, topk_method="greedy", attention_bias=True, hidden_act="gelu"),
    _glm("glm4-moe", use_qk_norm=True),
    _glm("glm4-moe-odd", attention_bias=True, n_group=1, topk_group=1, n_shared_experts=1, norm_topk_prob=False),
    _dots("dots1", sliding_window=5, max_window_layers=1),
    _dots("dots1-odd", attention_bias=True, norm_topk_prob=True, n_group=1, topk_group=1, sliding_window=None),
    _lite("glm4-moe-lite", mlp_layer_types=["sparse", "dense", "sparse"]),
    _lite("glm4-moe-lite-usual", n_group=1, topk_group=1, rope_interleave=False, tie_word_embeddings=True),
]
