"""The DeepSeek line at full size, as each config.json says it, and what is known of it.

The numbers of parameters are those of the main model, with the corrections of the routers (which the reference keeps as
buffers) and without what predicts further tokens. Active: all but the experts that a token is not sent to; embedding
and head, 2 · vocab · dim, count.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Known(NamedTuple):
    """A configuration; its reference class; parameters in all, active ones; numbers kept of a token in a layer."""

    config: dict[str, Any]
    reference: str
    total: int
    active: int
    kept: int


def _yarn(factor: float, **more: Any) -> dict[str, Any]:
    usual = {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": 4096, **usual, **more}


LATENT: dict[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "ep_size": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
}
SIGMOID = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True}
V3: dict[str, Any] = {
    **LATENT,
    **SIGMOID,
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840,
    "rope_scaling": _yarn(40),
}
KIMI: dict[str, Any] = {
    **V3,
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.827,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 131072,
    "rope_theta": 50000.0,
    "rope_scaling": _yarn(32, beta_fast=1.0, beta_slow=1.0),
}
V2: dict[str, Any] = {
    **LATENT,
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 102400,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "topk_method": "group_limited_greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "n_group": 8,
    "topk_group": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 16.0,
    "max_position_embeddings": 163840,
    "rope_scaling": _yarn(40),
}
V2_LITE: dict[str, Any] = {
    **V2,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "rope_scaling": _yarn(40, mscale=0.707, mscale_all_dim=0.707),
}
GLM: dict[str, Any] = {
    "model_type": "glm4_moe",
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 92,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 131072,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "use_qk_norm": True,
    "vocab_size": 151552,
}
GLM_AIR: dict[str, Any] = {
    **GLM,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "n_routed_experts": 128,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}

# As published: V3 671B and 37B active, K2 1.04T and 32B, V2 236B and 21B, V2-Lite 15.7B and 2.4B, GLM-4.5 355B and 32B,
# Air 106B and 12B. The active ones that are published leave the embedding table out, of which a token reads one row.
KNOWN: dict[str, Known] = {
    "deepseek-v3": Known(V3, "DeepseekV3Config", 671_026_419_200, 37_552_297_472, 576),
    "kimi-k2": Known(KIMI, "DeepseekV3Config", 1_026_408_232_448, 32_861_500_928, 576),
    "deepseek-v2": Known(V2, "DeepseekV2Config", 235_741_434_880, 21_375_800_320, 576),
    "deepseek-v2-lite": Known(V2_LITE, "DeepseekV2Config", 15_706_484_224, 2_661_150_208, 576),
    "glm-4.5": Known(GLM, "Glm4MoeConfig", 352_797_829_024, 33_632_266_144, 2048),
    "glm-4.5-air": Known(GLM_AIR, "Glm4MoeConfig", 106_852_251_264, 13_424_129_664, 2048),
}
