"""Published configurations of the classic decoders at full size, as their config.json says them; their sizes."""

from __future__ import annotations

from typing import Any

from openbook.nn import spec


def config(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **keys}


GPT_1 = config("openai-gpt", "OpenAIGPTLMHeadModel", vocab_size=40478, n_embd=768, n_layer=12, n_head=12, afn="gelu")


def gpt_neo(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return config(
        "gpt_neo",
        "GPTNeoForCausalLM",
        vocab_size=50257,
        hidden_size=dim,
        num_layers=layers,
        num_heads=heads,
        attention_types=[[["global", "local"], layers // 2]],
        max_position_embeddings=2048,
        window_size=256,
    )


GPT_J_6B = config(
    "gptj", "GPTJForCausalLM", vocab_size=50400, n_embd=4096, n_layer=28, n_head=16, n_positions=2048, rotary_dim=64
)


def pythia(vocab: int, dim: int, layers: int, heads: int) -> dict[str, Any]:
    return config(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        rotary_pct=0.25,
        rotary_emb_base=10000,
    )


FALCON_7B = config(
    "falcon",
    "FalconForCausalLM",
    vocab_size=65024,
    hidden_size=4544,
    num_hidden_layers=32,
    num_attention_heads=71,
    multi_query=True,
    parallel_attn=True,
    new_decoder_architecture=False,
    bias=False,
    alibi=False,
)
FALCON_40B = {
    **FALCON_7B,
    "hidden_size": 8192,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_kv_heads": 8,
    "new_decoder_architecture": True,
}


def bloom(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return config("bloom", "BloomForCausalLM", vocab_size=250880, hidden_size=dim, n_layer=layers, n_head=heads)


MPT_7B = config(
    "mpt",
    "MptForCausalLM",
    vocab_size=50432,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    max_seq_len=2048,
    attn_config={"alibi": True, "alibi_bias_max": 8, "attn_pdrop": 0, "qk_ln": False, "clip_qkv": None},
)


def opt(dim: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return config(
        "opt",
        "OPTForCausalLM",
        vocab_size=50272,
        hidden_size=dim,
        ffn_dim=4 * dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        **more,
    )


STARCODER = config(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    vocab_size=49152,
    n_embd=6144,
    n_layer=40,
    n_head=48,
    n_inner=24576,
    n_positions=8192,
    multi_query=True,
)


def phi(dim: int, layers: int) -> dict[str, Any]:
    return config(
        "phi",
        "PhiForCausalLM",
        vocab_size=51200,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=layers,
        num_attention_heads=32,
        partial_rotary_factor=0.4 if dim == 2560 else 0.5,
    )


# Numbers of parameters as published: in the papers and model cards, or as the weights count.
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("gpt-1", GPT_1, 116_534_784),
    ("gpt-neo-125m", gpt_neo(768, 12, 12), 125_198_592),
    ("gpt-neo-1.3b", gpt_neo(2048, 24, 16), 1_315_575_808),
    ("gpt-neo-2.7b", gpt_neo(2560, 32, 20), 2_651_307_520),
    ("gpt-j-6b", GPT_J_6B, 6_050_882_784),
    ("pythia-70m", pythia(50304, 512, 6, 8), 70_426_624),
    ("pythia-160m", pythia(50304, 768, 12, 12), 162_322_944),
    ("pythia-410m", pythia(50304, 1024, 24, 16), 405_334_016),
    ("pythia-1.4b", pythia(50304, 2048, 24, 16), 1_414_647_808),
    ("pythia-6.9b", pythia(50432, 4096, 32, 32), 6_857_302_016),
    ("pythia-12b", pythia(50688, 5120, 36, 40), 11_846_072_320),
    ("gpt-neox-20b", pythia(50432, 6144, 44, 64), 20_554_567_680),
    ("falcon-7b", FALCON_7B, 6_921_720_704),
    ("bloom-560m", bloom(1024, 24, 16), 559_214_592),
    ("bloom-7b1", bloom(4096, 30, 32), 7_069_016_064),
    ("bloom-176b", bloom(14336, 70, 112), 176_247_271_424),
    ("mpt-7b", MPT_7B, 6_649_286_656),
    ("opt-125m", opt(768, 12, 12), 125_239_296),
    ("opt-350m", opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False), 331_196_416),
    ("opt-6.7b", opt(4096, 32, 32), 6_658_473_984),
    ("starcoder", STARCODER, 15_517_456_384),
    ("phi-1.5", phi(2048, 24), 1_418_270_720),
    ("phi-2", phi(2560, 32), 2_779_683_840),
]
# Held to what the reference counts.
COUNTED: list[tuple[str, dict[str, Any]]] = [
    ("falcon-40b", FALCON_40B),
    (
        "codegen-350m",
        config(
            "codegen",
            "CodeGenForCausalLM",
            vocab_size=51200,
            n_embd=1024,
            n_layer=20,
            n_head=16,
            n_positions=2048,
            rotary_dim=32,
        ),
    ),
]


def gpt3(dim: int, layers: int, heads: int, window: int = 256, context: int = 2048, vocab: int = 50257) -> spec.Model:
    """GPT-3 (Brown et al. 2020, §2.1): GPT-2 whose layers are dense and locally banded in turn (Child et al. 2019).

    Never published as weights. How wide the bands were is not published either.
    """
    norm = spec.Norm(kind="layer", bias=True)
    mlp = spec.MLP(hidden=4 * dim, activation="gelu_tanh", gated=False, bias=True)

    def block(number: int) -> spec.Block:
        attention = spec.Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=dim // heads,
            pattern=spec.Pattern(window=window if number % 2 else None),
            bias=True,
            out_bias=True,
        )
        return spec.Block(branches=tuple(spec.Branch(layer=layer, norm=norm) for layer in (attention, mlp)))

    return spec.Model(
        embed=spec.Embed(vocab=vocab, dim=dim, positions=spec.Learned(count=context)),
        stack=spec.Stack(dim=dim, blocks=tuple(map(block, range(layers))), final_norm=norm),
        heads=(spec.Language(),),
        context=context,
    )


# Brown et al. 2020, table 2.1: width, layers, heads, parameters in the paper's rounding.
GPT_3 = [(768, 12, 12, 125e6), (1024, 24, 16, 350e6), (4096, 32, 32, 6.7e9), (12288, 96, 96, 175e9)]
