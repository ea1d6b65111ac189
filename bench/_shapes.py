"""The shapes that speed is measured on, as our specs and as the peers' configurations."""

from __future__ import annotations

from typing import Any

LLAMA_SHAPES: dict[str, dict[str, Any]] = {
    "15m": {"vocab": 32000, "dim": 288, "layers": 6, "heads": 6, "kv_heads": 6, "hidden": 768, "context": 1024},
    "135m": {"vocab": 49152, "dim": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 1536, "context": 2048},
    "1.1b": {"vocab": 32000, "dim": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "hidden": 5632, "context": 2048},
}
TIED = {"15m": True, "135m": True, "1.1b": False}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def ours(size: str) -> Any:
    """Our spec of a shape; 124m is GPT-2 small without dropout."""
    from openbook.models.make import spec_of

    if size == "124m":
        sizes = {"vocab": 50257, "dim": 768, "layers": 12, "heads": 12, "context": 1024}
        return spec_of("gpt2", sizes, NO_DROPOUT)
    return spec_of("llama", {**LLAMA_SHAPES[size], "tied": TIED[size]})


def matrix_weights(size: str) -> int:
    """How many weights a token is multiplied with, the head's included: what a step of decoding reads from memory."""
    s = LLAMA_SHAPES[size]
    attention = s["dim"] * s["dim"] * 2 + 2 * s["dim"] * s["dim"] * s["kv_heads"] // s["heads"]
    return s["layers"] * (attention + 3 * s["dim"] * s["hidden"]) + s["vocab"] * s["dim"]


def theirs(size: str) -> Any:
    """The same as a new model of transformers."""
    import transformers

    if size == "124m":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**NO_DROPOUT))
    s = LLAMA_SHAPES[size]
    config = transformers.LlamaConfig(
        vocab_size=s["vocab"],
        hidden_size=s["dim"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"],
        intermediate_size=s["hidden"],
        max_position_embeddings=s["context"],
        tie_word_embeddings=TIED[size],
    )
    return transformers.LlamaForCausalLM(config)
