"""Families with a state of fixed size: Mamba 2, Jamba, and what mixes such layers with attention."""

from __future__ import annotations

from typing import Any

from tests.families.case import Case

MAMBA2: dict[str, Any] = {
    "vocab_size": 113,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_heads": 6,
    "head_dim": 12,
    "expand": 2,
    "n_groups": 1,
    "state_size": 7,
    "conv_kernel": 3,
    "chunk_size": 8,
    "layer_norm_epsilon": 1e-4,
}

JAMBA: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 0,
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "mamba_dt_rank": 3,
    "router_aux_loss_coef": 0.02,
}

NEXT: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 20,
    "max_position_embeddings": 64,
    "rms_norm_eps": 2e-3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
    "linear_conv_kernel_dim": 3,
    "moe_intermediate_size": 22,
    "shared_expert_intermediate_size": 34,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.3},
}

GRANITE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 36,
    "intermediate_size": 22,
    "shared_intermediate_size": 34,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
    "mamba_n_heads": 6,
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 1.5,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.3,
}

# Named so that what is said greedily repeats itself: a name is a seed.
CASES = [
    Case("mamba2-one", "Mamba2Config", "Mamba2ForCausalLM", MAMBA2),
    Case(
        "mamba2-groups",
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {
            **MAMBA2,
            "num_hidden_layers": 2,
            "n_groups": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "mamba2-steps",
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {**MAMBA2, "num_hidden_layers": 2, "time_step_limit": [0.02, 0.9]},
    ),
    Case("jamba-mixed", "JambaConfig", "JambaForCausalLM", JAMBA),
    Case(
        "jamba-dense",
        "JambaConfig",
        "JambaForCausalLM",
        {
            **{
                key: value for key, value in JAMBA.items() if key not in ("router_aux_loss_coef", "num_experts_per_tok")
            },
            "num_hidden_layers": 2,
            "num_experts": 1,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "mamba_expand": 3,
            "mamba_dt_rank": "auto",
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
        },
    ),
    Case("qwen3-next", "Qwen3NextConfig", "Qwen3NextForCausalLM", NEXT),
    Case(
        "qwen3-next-mixed",
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            **NEXT,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "attention_bias": True,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "bamba",
        "BambaConfig",
        "BambaForCausalLM",
        {
            "vocab_size": 131,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "rms_norm_eps": 3e-5,
            "attn_layer_indices": [1],
            "mamba_n_heads": 6,
            "mamba_n_groups": 2,
            "mamba_d_state": 5,
            "mamba_d_conv": 3,
            "mlp_bias": True,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        },
    ),
    Case("granite-hybrid", "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM", GRANITE),
    Case(
        "granite-hybrid-dense",
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {
            **{key: value for key, value in GRANITE.items() if "expert" not in key and "router" not in key},
            "num_local_experts": 0,
            "num_experts_per_tok": 0,  # as it is published
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "linear_attention"],
            "position_embedding_type": "rope",
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "mamba_n_groups": 2,
            "attention_bias": True,
        },
    ),
]
