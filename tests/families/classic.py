"""Decoders with LayerNorm and plain feed-forward layers: GPT-1, GPT-Neo, GPT-J, GPT-NeoX, Falcon, BLOOM, MPT, OPT …"""

from __future__ import annotations

from typing import Any

from tests.families.case import Case

NEOX: dict[str, Any] = {
    "vocab_size": 107,
    "hidden_size": 60,
    "intermediate_size": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 64,
    "layer_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}
BLOOM: dict[str, Any] = {"vocab_size": 109, "hidden_size": 60, "n_layer": 3, "n_head": 6, "layer_norm_epsilon": 2e-5}


def _neox(name: str, **values: Any) -> Case:
    return Case(name, "GPTNeoXConfig", "GPTNeoXForCausalLM", {**NEOX, **values})


CASES = [
    _neox("gpt_neox"),
    _neox(
        "gpt_neox-sequential",
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="relu",
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0, "partial_rotary_factor": 1.0},
    ),
    Case("bloom", "BloomConfig", "BloomForCausalLM", BLOOM),
    Case("bloom-eight", "BloomConfig", "BloomForCausalLM", {**BLOOM, "hidden_size": 56, "n_head": 8}),
    Case("bloom-untied", "BloomConfig", "BloomForCausalLM", {**BLOOM, "n_head": 5, "tie_word_embeddings": False}),
]
