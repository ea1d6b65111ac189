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

CASES = [
    Case("mamba2", "Mamba2Config", "Mamba2ForCausalLM", MAMBA2),
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
            "time_step_limit": [0.02, 0.9],
            "tie_word_embeddings": True,
        },
    ),
]
