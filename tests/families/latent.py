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


def _v3(name: str, **values: Any) -> Case:
    return Case(name, "DeepseekV3Config", "DeepseekV3ForCausalLM", {**SMALL, **values})


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
]
