"""Published configurations with experts at full size, as their config.json says them; their sizes, all and active."""

from __future__ import annotations

from typing import Any


def config(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], "tie_word_embeddings": False, **keys}


def mixtral(dim: int, hidden: int, layers: int, heads: int, vocab: int, context: int) -> dict[str, Any]:
    return config(
        "mixtral",
        "MixtralForCausalLM",
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=context,
        num_local_experts=8,
        num_experts_per_tok=2,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    )


MIXTRAL_8X7B = mixtral(4096, 14336, 32, 32, 32000, 32768)
MIXTRAL_8X22B = mixtral(6144, 16384, 56, 48, 32768, 65536)

QWEN_1_5_MOE = config(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=5632,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    num_experts=60,
    num_experts_per_tok=4,
    max_position_embeddings=8192,
    rope_theta=1e6,
    norm_topk_prob=False,
)
QWEN2_57B = {
    **QWEN_1_5_MOE,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "moe_intermediate_size": 2560,
    "shared_expert_intermediate_size": 20480,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 32768,
}


def qwen3(dim: int, hidden: int, expert: int, layers: int, heads: int) -> dict[str, Any]:
    return config(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        vocab_size=151936,
        hidden_size=dim,
        intermediate_size=hidden,
        moe_intermediate_size=expert,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40960,
        rope_theta=1e6,
    )


QWEN3_30B = qwen3(2048, 6144, 768, 48, 32)
QWEN3_235B = qwen3(4096, 12288, 1536, 94, 64)


def oss(layers: int, experts: int) -> dict[str, Any]:
    return config(
        "gpt_oss",
        "GptOssForCausalLM",
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=experts,
        num_experts_per_tok=4,
        sliding_window=128,
        swiglu_limit=7.0,
        attention_bias=True,
        rope_theta=150000,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
    )


GRANITE_3B_A800M = config(
    "granitemoe",
    "GraniteMoeForCausalLM",
    vocab_size=49155,
    hidden_size=1536,
    intermediate_size=512,
    num_hidden_layers=32,
    num_attention_heads=24,
    num_key_value_heads=8,
    num_local_experts=40,
    num_experts_per_tok=8,
    attention_multiplier=0.015625,
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    logits_scaling=6.0,
) | {"tie_word_embeddings": True}


def switch(dim: int, hidden: int, layers: int, heads: int, experts: int, sparse: int, head_dim: int) -> dict[str, Any]:
    return config(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        vocab_size=32128,
        d_model=dim,
        d_ff=hidden,
        d_kv=head_dim,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        num_experts=experts,
        num_sparse_encoder_layers=sparse,
        num_sparse_decoder_layers=sparse,
    ) | {"tie_word_embeddings": True}


DBRX = config(
    "dbrx",
    "DbrxForCausalLM",
    vocab_size=100352,
    d_model=6144,
    n_heads=48,
    n_layers=40,
    max_seq_len=32768,
    attn_config={"clip_qkv": 8.0, "kv_n_heads": 8, "rope_theta": 500000.0},
    ffn_config={"hidden_size": 6144, "ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
)

OLMOE = config(
    "olmoe",
    "OlmoeForCausalLM",
    vocab_size=50304,
    hidden_size=2048,
    intermediate_size=1024,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    num_experts=64,
    num_experts_per_tok=8,
    max_position_embeddings=4096,
)

# Name, config, all parameters, those that one token meets, and what the publisher says of the two in billions.
SIZES: list[tuple[str, dict[str, Any], int, float, float]] = [
    ("Mixtral 8x7B", MIXTRAL_8X7B, 46_702_792_704, 46.7, 12.9),
    ("Mixtral 8x22B", MIXTRAL_8X22B, 140_630_071_296, 141, 39),
    ("Qwen1.5-MoE-A2.7B", QWEN_1_5_MOE, 14_315_784_192, 14.3, 2.7),
    ("Qwen2-57B-A14B", QWEN2_57B, 57_408_658_944, 57, 14),
    ("Qwen3-30B-A3B", QWEN3_30B, 30_532_122_624, 30.5, 3.3),
    ("Qwen3-235B-A22B", QWEN3_235B, 235_093_634_560, 235, 22),
    ("gpt-oss-20b", oss(24, 32), 20_914_757_184, 20.9, 3.6),
    ("gpt-oss-120b", oss(36, 128), 116_829_156_672, 116.8, 5.1),
    ("Granite 3.0 3B-A800M", GRANITE_3B_A800M, 3_298_793_472, 3.3, 0.8),
    ("OLMoE-1B-7B", OLMOE, 6_919_161_856, 6.9, 1.3),
    ("DBRX", DBRX, 131_596_523_520, 132, 36),
]
# Counted by the reference itself, on no memory.
COUNTED: list[tuple[str, dict[str, Any]]] = [
    *((name, keys) for name, keys, *_ in SIZES),
    ("switch-base-8", switch(768, 3072, 12, 12, 8, 6, 64)),
]
