"""Published configurations at full size, as their config.json says them; and what is known of each."""

from __future__ import annotations

from typing import Any


def gpt2(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_embd": dim,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "n_ctx": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
    }


def llama(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA_2_7B = llama(4096, 32, 32, 11008)
LLAMA_2_70B = llama(8192, 80, 64, 28672, num_key_value_heads=8)
LLAMA_3_8B = llama(
    4096,
    32,
    32,
    14336,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=8192,
    rope_theta=500000.0,
)
MISTRAL_7B = {
    **llama(4096, 32, 32, 14336, num_key_value_heads=8, max_position_embeddings=32768, sliding_window=4096),
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
}
MIXTRAL_8X7B = {
    **llama(4096, 32, 32, 14336, num_key_value_heads=8, max_position_embeddings=32768, rope_theta=1e6),
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}
BERT_BASE = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
MAMBA_130M = {
    "model_type": "mamba",
    "architectures": ["MambaForCausalLM"],
    "vocab_size": 50280,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": 48,
}
T5_SMALL = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
}
GEMMA_2_2B = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
GEMMA_3_1B = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 262144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}

# Numbers of parameters as published with the weights.
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("gpt2", gpt2(768, 12, 12), 124_439_808),
    ("gpt2-medium", gpt2(1024, 24, 16), 354_823_168),
    ("gpt2-large", gpt2(1280, 36, 20), 774_030_080),
    ("gpt2-xl", gpt2(1600, 48, 25), 1_557_611_200),
    ("llama-2-7b", LLAMA_2_7B, 6_738_415_616),
    ("llama-3-8b", LLAMA_3_8B, 8_030_261_248),
    ("mistral-7b", MISTRAL_7B, 7_241_732_096),
    ("mixtral-8x7b", MIXTRAL_8X7B, 46_702_792_704),
    ("bert-base", BERT_BASE, 109_482_240),
    ("mamba-130m", MAMBA_130M, 129_135_360),
    ("t5-small", T5_SMALL, 60_506_624),
    ("gemma-2-2b", GEMMA_2_2B, 2_614_341_888),
    ("gemma-3-1b", GEMMA_3_1B, 999_885_952),
]
KIB = 1024
# Bytes of keys and values for one token, in 16 bits.
STATE: list[tuple[str, dict[str, Any], int]] = [
    ("llama-2-7b", LLAMA_2_7B, 512 * KIB),
    ("llama-2-70b", LLAMA_2_70B, 320 * KIB),
    ("llama-3-8b", LLAMA_3_8B, 128 * KIB),
    ("mistral-7b", MISTRAL_7B, 128 * KIB),
]
