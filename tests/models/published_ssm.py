"""Published configurations of state space models and hybrids, with the numbers of parameters of their weights."""

from __future__ import annotations

from typing import Any


def mamba(dim: int, layers: int) -> dict[str, Any]:
    """Mamba 1 (Gu & Dao 2023, appendix D): the vocabulary is padded to 50,280."""
    return {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "vocab_size": 50280,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "state_size": 16,
        "conv_kernel": 4,
        "expand": 2,
        "time_step_rank": "auto",
        "tie_word_embeddings": True,
    }


def mamba2(dim: int, layers: int) -> dict[str, Any]:
    """Mamba 2 (Dao & Gu 2024, §9): the vocabulary is padded to 50,288."""
    return {
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "vocab_size": 50288,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_heads": 2 * dim // 64,
        "head_dim": 64,
        "n_groups": 1,
        "state_size": 128,
        "conv_kernel": 4,
        "expand": 2,
        "tie_word_embeddings": True,
    }


CODESTRAL = {**mamba2(4096, 64), "vocab_size": 32768, "n_groups": 8, "tie_word_embeddings": False}
JAMBA = {
    "model_type": "jamba",
    "architectures": ["JambaForCausalLM"],
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_dt_rank": 256,
    "mamba_expand": 2,
    "mamba_inner_layernorms": True,
    "sliding_window": None,
    "rms_norm_eps": 1e-6,
}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "architectures": ["Qwen3NextForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
    "max_position_embeddings": 262144,
}
BAMBA = {
    "model_type": "bamba",
    "architectures": ["BambaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_indices": [9, 18, 27],
    "mamba_n_heads": 128,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}

# Numbers of parameters as published with the weights.
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("mamba-370m", mamba(1024, 48), 371_516_416),
    ("mamba-790m", mamba(1536, 48), 793_204_224),
    ("mamba-1.4b", mamba(2048, 48), 1_372_178_432),
    ("mamba-2.8b", mamba(2560, 64), 2_768_345_600),
    ("mamba2-130m", mamba2(768, 24), 128_989_632),
    ("mamba2-1.3b", mamba2(2048, 48), 1_343_757_312),
    ("mamba2-2.7b", mamba2(2560, 64), 2_702_599_680),
    ("codestral-mamba-7b", CODESTRAL, 7_285_403_648),
    ("jamba-v0.1", JAMBA, 51_570_323_328),
    ("qwen3-next-80b-a3b", QWEN3_NEXT, 79_674_391_296),
]
# What one token meets, as the names and model cards round it.
ACTIVE: list[tuple[str, dict[str, Any], float]] = [
    ("jamba-v0.1", JAMBA, 12e9),
    ("qwen3-next-80b-a3b", QWEN3_NEXT, 3.9e9),
]
# Numbers that a sequence keeps in fp32, whatever its length.
KEPT: list[tuple[str, dict[str, Any], int]] = [
    ("mamba-2.8b", mamba(2560, 64), 64 * 5120 * (3 + 16)),
    ("mamba2-2.7b", mamba2(2560, 64), 64 * ((5120 + 2 * 128) * 3 + 5120 * 128)),
    ("jamba-v0.1", JAMBA, 28 * 8192 * (3 + 16)),
    ("qwen3-next-80b-a3b", QWEN3_NEXT, 36 * ((2 * 16 + 32) * 128 * 3 + 32 * 128 * 128)),
]
