"""The families the house was built on; every law runs on all of them in the quick gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.families.case import Case

LLAMA: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}


def _llama(name: str, **values: Any) -> Case:
    return Case(name, "LlamaConfig", "LlamaForCausalLM", {**LLAMA, **values})


def _rope(**rules: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **rules}, "max_position_embeddings": 32}


def _like(name: str, config: str, architecture: str, **values: Any) -> Case:
    return Case(name, config, architecture, {**LLAMA, **values})


SMALL_BERT: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-6,
}
SMALL_T5: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 40,
    "d_kv": 12,
    "d_ff": 72,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}

_DECODERS: list[Case] = [
    _llama("llama"),
    _llama("llama-tied-mha", tie_word_embeddings=True, num_key_value_heads=6, hidden_act="gelu_pytorch_tanh"),
    _llama("llama-biased-mqa", num_key_value_heads=1, attention_bias=True, mlp_bias=True, head_dim=10),
    _llama("llama-linear", **_rope(rope_type="linear", factor=3.0)),
    _llama("llama-dynamic", **_rope(rope_type="dynamic", factor=2.5)),
    _llama("llama-yarn", **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    _llama(
        "llama-yarn-mscale",
        **_rope(
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=16,
            beta_fast=20.0,
            beta_slow=2.0,
            mscale=1.2,
            mscale_all_dim=0.8,
        ),
    ),
    _llama(
        "llama3",
        head_dim=32,
        **_rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    Case(
        "gpt2",
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 113,
            "n_embd": 40,
            "n_layer": 3,
            "n_head": 5,
            "n_positions": 64,
            "layer_norm_epsilon": 1e-4,
        },
    ),
    Case(
        "gpt2-odd",
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 113,
            "n_embd": 40,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": 60,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    _like("mistral", "MistralConfig", "MistralForCausalLM", sliding_window=5),
    _like("mistral-full", "MistralConfig", "MistralForCausalLM", sliding_window=None, head_dim=12),
    _like("qwen2", "Qwen2Config", "Qwen2ForCausalLM", tie_word_embeddings=True),
    _like(
        "qwen2-window",
        "Qwen2Config",
        "Qwen2ForCausalLM",
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    ),
    _like("qwen3", "Qwen3Config", "Qwen3ForCausalLM", head_dim=14),
    _like("qwen3-biased", "Qwen3Config", "Qwen3ForCausalLM", head_dim=8, attention_bias=True, tie_word_embeddings=True),
    _like(
        "gemma2",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        head_dim=12,
        sliding_window=4,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    _like(
        "gemma3",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        head_dim=12,
        sliding_window=4,
        query_pre_attn_scalar=20,
        num_hidden_layers=4,
        layer_types=["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
        },
    ),
    _like(
        "gemma3-full",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        head_dim=12,
        layer_types=["full_attention"] * 3,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 50000.0}},
    ),
    _like("mixtral", "MixtralConfig", "MixtralForCausalLM", num_local_experts=5, num_experts_per_tok=2),
    _like(
        "mixtral-window",
        "MixtralConfig",
        "MixtralForCausalLM",
        num_local_experts=4,
        num_experts_per_tok=3,
        sliding_window=4,
        head_dim=10,
    ),
    Case(
        "mamba",
        "MambaConfig",
        "MambaForCausalLM",
        {
            "vocab_size": 113,
            "hidden_size": 36,
            "num_hidden_layers": 3,
            "state_size": 6,
            "conv_kernel": 3,
            "layer_norm_epsilon": 1e-4,
        },
    ),
    Case(
        "mamba-odd",
        "MambaConfig",
        "MambaForCausalLM",
        {
            "vocab_size": 113,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "state_size": 5,
            "time_step_rank": 3,
            "expand": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
        },
    ),
]
_ENCODERS: list[Case] = [
    Case("bert", "BertConfig", "BertForMaskedLM", SMALL_BERT, "encoder"),
    Case("bert-relu", "BertConfig", "BertForMaskedLM", {**SMALL_BERT, "hidden_act": "relu"}, "encoder"),
]
_ENCODER_DECODERS: list[Case] = [
    Case("t5", "T5Config", "T5ForConditionalGeneration", SMALL_T5, "encoder-decoder"),
    Case(
        "t5-gated",
        "T5Config",
        "T5ForConditionalGeneration",
        {
            **SMALL_T5,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        "encoder-decoder",
    ),
]
CASES = [replace(case, core=True) for case in _DECODERS + _ENCODERS + _ENCODER_DECODERS]
