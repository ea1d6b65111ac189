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
GPT: dict[str, Any] = {"vocab_size": 103, "n_embd": 60, "n_layer": 3, "n_positions": 64, "layer_norm_epsilon": 3e-5}
NEO: dict[str, Any] = {
    "vocab_size": 103,
    "hidden_size": 45,
    "num_layers": 4,
    "num_heads": 5,
    "max_position_embeddings": 64,
    "window_size": 5,
    "layer_norm_epsilon": 3e-5,
}
FALCON: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
MPT: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": 60,
    "n_layers": 3,
    "n_heads": 6,
    "max_seq_len": 64,
    "layer_norm_epsilon": 3e-5,
}
PHI: dict[str, Any] = {
    "vocab_size": 107,
    "hidden_size": 72,
    "intermediate_size": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "layer_norm_eps": 3e-5,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}
OPT: dict[str, Any] = {
    "vocab_size": 103,
    "hidden_size": 60,
    "ffn_dim": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 64,
}
STABLELM: dict[str, Any] = {
    "vocab_size": 107,
    "hidden_size": 72,
    "intermediate_size": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "layer_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}


def _neox(name: str, **values: Any) -> Case:
    return Case(name, "GPTNeoXConfig", "GPTNeoXForCausalLM", {**NEOX, **values})


def _falcon(name: str, **values: Any) -> Case:
    # With ALiBi the reference's eager way adds the biases twice, unscaled to the mask's scaled ones.
    way = "sdpa" if values.get("alibi") else "eager"
    return Case(name, "FalconConfig", "FalconForCausalLM", {**FALCON, **values}, attention=way)


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
    Case("bloom-untied", "BloomConfig", "BloomForCausalLM", {**BLOOM, "n_head": 5, "tie_word_embeddings": False}),
    Case("openai-gpt", "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", {**GPT, "n_head": 5}),
    Case(
        "openai-gpt-odd",
        "OpenAIGPTConfig",
        "OpenAIGPTLMHeadModel",
        {**GPT, "n_head": 4, "afn": "silu", "tie_word_embeddings": False},
    ),
    Case("gpt_neo", "GPTNeoConfig", "GPTNeoForCausalLM", {**NEO, "attention_types": [[["global", "local"], 2]]}),
    Case(
        "gpt_neo-odd",
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            **NEO,
            "attention_types": [[["local"], 1], [["global", "local", "local"], 1]],
            "intermediate_size": 70,
            "activation_function": "relu",
            "tie_word_embeddings": False,
        },
    ),
    Case("gptj", "GPTJConfig", "GPTJForCausalLM", {**GPT, "n_head": 5, "rotary_dim": 6}),
    Case(
        "gptj-whole",
        "GPTJConfig",
        "GPTJForCausalLM",
        {
            **GPT,
            "n_head": 6,
            "rotary_dim": 10,
            "n_inner": 70,
            "activation_function": "gelu",
            "tie_word_embeddings": True,
        },
    ),
    Case("codegen", "CodeGenConfig", "CodeGenForCausalLM", {**GPT, "n_embd": 72, "n_head": 12, "rotary_dim": 4}),
    Case("gpt_bigcode", "GPTBigCodeConfig", "GPTBigCodeForCausalLM", {**GPT, "n_head": 5}),
    Case(
        "gpt_bigcode-many",
        "GPTBigCodeConfig",
        "GPTBigCodeForCausalLM",
        {
            **GPT,
            "n_head": 6,
            "multi_query": False,
            "n_inner": 70,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
        },
    ),
    _falcon("falcon"),
    _falcon("falcon-many", multi_query=False, bias=True, ffn_hidden_size=70, tie_word_embeddings=False),
    _falcon("falcon-sequential", parallel_attn=False, activation="gelu_pytorch_tanh"),
    _falcon("falcon-new", new_decoder_architecture=True, num_kv_heads=2),
    _falcon("falcon-new-one-norm", new_decoder_architecture=True, num_kv_heads=3, num_ln_in_parallel_attn=1, bias=True),
    _falcon("falcon-alibi", alibi=True, multi_query=False, parallel_attn=False, bias=True),
    _falcon("falcon-alibi-beside", alibi=True),
    Case("mpt", "MptConfig", "MptForCausalLM", MPT),
    Case(
        "mpt-clipped",
        "MptConfig",
        "MptForCausalLM",
        {**MPT, "n_heads": 4, "attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.4}, "tie_word_embeddings": False},
    ),
    Case("phi", "PhiConfig", "PhiForCausalLM", PHI),
    Case(
        "phi-odd",
        "PhiConfig",
        "PhiForCausalLM",
        {**PHI, "num_key_value_heads": 2, "qk_layernorm": True, "hidden_act": "relu", "tie_word_embeddings": True},
    ),
    Case("opt", "OPTConfig", "OPTForCausalLM", OPT),
    Case(
        "opt-narrow", "OPTConfig", "OPTForCausalLM", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 28}
    ),
    Case(
        "opt-odd",
        "OPTConfig",
        "OPTForCausalLM",
        {
            **OPT,
            "enable_bias": False,
            "_remove_final_layer_norm": True,
            "activation_function": "gelu",
            "word_embed_proj_dim": 28,
            "tie_word_embeddings": False,
        },
    ),
    Case("stablelm-heads", "StableLmConfig", "StableLmForCausalLM", {**STABLELM, "qk_layernorm": True}),
    Case("stablelm", "StableLmConfig", "StableLmForCausalLM", STABLELM),
    Case(
        "stablelm-parallel",
        "StableLmConfig",
        "StableLmForCausalLM",
        {**STABLELM, "use_parallel_residual": True, "use_qkv_bias": True, "tie_word_embeddings": True},
    ),
]
