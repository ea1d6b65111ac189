"""Mixtures of experts: shared and gated experts, sparse and dense layers, sinks, and layouts of stacked tensors."""

from __future__ import annotations

from typing import Any

from tests.families.case import Case
from tests.families.core import LLAMA, SMALL_T5

SPARSE: dict[str, Any] = {
    **LLAMA,
    "moe_intermediate_size": 22,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
}
SHARED = {**SPARSE, "shared_expert_intermediate_size": 34}
OSS: dict[str, Any] = {
    **LLAMA,
    "intermediate_size": 22,
    "head_dim": 10,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "swiglu_limit": 0.8,
    "router_aux_loss_coef": 0.03,
}
# The reference drops what is beyond the capacity at inference too, which no server may do: here it is never reached.
SWITCH = {
    **SMALL_T5,
    "num_experts": 2,
    "expert_capacity": 999,
    "router_jitter_noise": 0.02,
    "router_z_loss_coef": 0.03,
    "router_aux_loss_coef": 0.04,
    "dropout_rate": 0.2,
}
OLMOE = {"intermediate_size": 22, "num_experts": 5, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.03}


def dbrx(experts: int, top: int, **inner: Any) -> dict[str, Any]:
    """Sizes of DBRX; `inner` are keys of its two tables."""
    attn = {key: value for key, value in inner.items() if key in ("clip_qkv", "kv_n_heads")}
    ffn = {key: value for key, value in inner.items() if key not in attn}
    sizes = {"hidden_size": 48, "ffn_hidden_size": 22, "moe_num_experts": experts, "moe_top_k": top}
    return {
        "vocab_size": 131,
        "d_model": 48,
        "n_heads": 6,
        "n_layers": 3,
        "max_seq_len": 64,
        "rope_parameters": LLAMA["rope_parameters"],
        "attn_config": {"rope_theta": 5000.0, **attn},
        "ffn_config": {**sizes, "moe_loss_weight": 0.03, **ffn},
    }


CASES: list[Case] = [
    Case("qwen2-moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", SHARED),
    Case(
        "qwen2-moe-mixed",
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            **SHARED,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "num_hidden_layers": 5,
            "mlp_only_layers": [3],
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 3,
        },
    ),
    Case("qwen3-moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**SPARSE, "head_dim": 10}),
    Case(
        "qwen3-moe-mixed",
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            **SPARSE,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
        },
    ),
    Case(
        "gpt-oss",
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **OSS,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 20.0,
                "truncate": False,
            },
        },
    ),
    Case(
        "gpt-oss-plain",
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **OSS,
            "attention_bias": False,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0},
        },
    ),
    Case(
        "granitemoe",
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {
            **LLAMA,
            "intermediate_size": 22,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "router_aux_loss_coef": 0.02,
            "attention_multiplier": 0.21,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 6.0,
            "attention_bias": True,
        },
    ),
    Case(
        "switch",
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        {**SWITCH, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        "encoder-decoder",
    ),
    Case(
        "switch-odd",
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        {
            **SWITCH,
            "num_layers": 3,
            "num_experts": 5,
            "num_sparse_encoder_layers": 3,
            "num_sparse_decoder_layers": 9,
            "router_bias": True,
            "dense_act_fn": "gelu",
        },
        "encoder-decoder",
    ),
    Case("dbrx", "DbrxConfig", "DbrxForCausalLM", dbrx(5, 2, clip_qkv=0.7, kv_n_heads=2)),
    Case(
        "dbrx-plain",
        "DbrxConfig",
        "DbrxForCausalLM",
        dbrx(4, 3, clip_qkv=9.0, moe_normalize_expert_weights=None, ffn_act_fn={"name": "gelu"}, moe_jitter_eps=0.02),
    ),
    Case("olmoe", "OlmoeConfig", "OlmoeForCausalLM", {**LLAMA, **OLMOE}),
    Case(
        "olmoe-odd",
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {
            **LLAMA,
            **OLMOE,
            "num_key_value_heads": 3,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
]
