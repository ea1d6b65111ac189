"""Published configurations of newer dense decoders at full size, and their published numbers of parameters."""

from __future__ import annotations

from typing import Any

from tests.models.published import llama


def shaped(
    model_type: str, architecture: str, sizes: tuple[int, int, int, int, int, int], **more: Any
) -> dict[str, Any]:
    """A configuration of vocab, dim, layers, heads, kv heads and hidden features."""
    vocab, dim, layers, heads, kv_heads, hidden = sizes
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": vocab,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        **more,
    }


LLAMA_31: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LLAMA_31_8B = llama(4096, 32, 32, 14336, **LLAMA_31)
LLAMA_31_70B = llama(8192, 80, 64, 28672, **LLAMA_31)
LLAMA_31_405B = llama(16384, 126, 128, 53248, **LLAMA_31)
LLAMA_32_1B = llama(2048, 16, 32, 8192, **LLAMA_31) | {"tie_word_embeddings": True}
LLAMA_32_3B = llama(3072, 28, 24, 8192, **LLAMA_31) | {"tie_word_embeddings": True}


def starcoder2(dim: int, layers: int, heads: int, kv_heads: int, hidden: int) -> dict[str, Any]:
    sizes = (49152, dim, layers, heads, kv_heads, hidden)
    more = {"norm_epsilon": 1e-5, "max_position_embeddings": 16384, "sliding_window": 4096, "use_bias": True}
    return shaped("starcoder2", "Starcoder2ForCausalLM", sizes, hidden_act="gelu_pytorch_tanh", **more)


def phi3(*sizes: int, **more: Any) -> dict[str, Any]:
    return shaped("phi3", "Phi3ForCausalLM", sizes, **more)  # type: ignore[arg-type]


def olmo(kind: str, *sizes: int, **more: Any) -> dict[str, Any]:
    return shaped(kind.lower(), f"{kind}ForCausalLM", sizes, tie_word_embeddings=False, **more)  # type: ignore[arg-type]


def qwen(kind: str, *sizes: int, tied: bool, **more: Any) -> dict[str, Any]:
    name = f"{kind.capitalize()}ForCausalLM"
    return shaped(kind, name, sizes, tie_word_embeddings=tied, **more)  # type: ignore[arg-type]


QWEN3: dict[str, Any] = {"head_dim": 128}
COMMAND_R = shaped("cohere", "CohereForCausalLM", (256000, 8192, 40, 64, 64, 22528), logit_scale=0.0625)
COMMAND_R7B = shaped("cohere2", "Cohere2ForCausalLM", (256000, 4096, 32, 32, 8, 14336), logit_scale=0.25)
GLM: tuple[int, int, int, int, int, int] = (151552, 4096, 40, 32, 2, 13696)
GEMMA: dict[str, Any] = {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh"}

PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("llama-3.1-8b", LLAMA_31_8B, 8_030_261_248),
    ("llama-3.1-70b", LLAMA_31_70B, 70_553_706_496),
    ("llama-3.1-405b", LLAMA_31_405B, 405_853_388_800),
    ("llama-3.2-1b", LLAMA_32_1B, 1_235_814_400),
    ("llama-3.2-3b", LLAMA_32_3B, 3_212_749_824),
    ("starcoder2-3b", starcoder2(3072, 30, 24, 2, 12288), 3_030_371_328),
    ("starcoder2-7b", starcoder2(4608, 32, 36, 4, 18432), 7_173_923_840),
    ("starcoder2-15b", starcoder2(6144, 40, 48, 4, 24576) | {"tie_word_embeddings": False}, 15_957_889_024),
    ("phi-3-mini", phi3(32064, 3072, 32, 32, 32, 8192), 3_821_079_552),
    ("phi-3-medium", phi3(32064, 5120, 40, 40, 10, 17920), 13_960_238_080),
    ("phi-4", phi3(100352, 5120, 40, 40, 10, 17920), 14_659_507_200),
    ("phi-4-mini", phi3(200064, 3072, 32, 24, 8, 8192, tie_word_embeddings=True), 3_836_021_760),
    ("olmo-7b", olmo("Olmo", 50304, 4096, 32, 32, 32, 11008), 6_888_095_744),
    ("olmo-2-7b", olmo("Olmo2", 100352, 4096, 32, 32, 32, 11008), 7_298_617_344),
    ("olmo-2-13b", olmo("Olmo2", 100352, 5120, 40, 40, 40, 13824), 13_716_198_400),
    ("command-r", COMMAND_R, 34_980_831_232),
    ("glm-4-9b", shaped("glm", "GlmForCausalLM", GLM, head_dim=128), 9_399_951_360),
    ("glm-4-9b-0414", shaped("glm4", "Glm4ForCausalLM", GLM, head_dim=128, attention_bias=True), 9_400_279_040),
    ("smollm3-3b", shaped("smollm3", "SmolLM3ForCausalLM", (128256, 2048, 36, 16, 4, 11008)), 3_075_098_624),
    ("qwen2.5-0.5b", qwen("qwen2", 151936, 896, 24, 14, 2, 4864, tied=True), 494_032_768),
    ("qwen2.5-1.5b", qwen("qwen2", 151936, 1536, 28, 12, 2, 8960, tied=True), 1_543_714_304),
    ("qwen2.5-3b", qwen("qwen2", 151936, 2048, 36, 16, 2, 11008, tied=True), 3_085_938_688),
    ("qwen2.5-7b", qwen("qwen2", 152064, 3584, 28, 28, 4, 18944, tied=False), 7_615_616_512),
    ("qwen2.5-14b", qwen("qwen2", 152064, 5120, 48, 40, 8, 13824, tied=False), 14_770_033_664),
    ("qwen2.5-32b", qwen("qwen2", 152064, 5120, 64, 40, 8, 27648, tied=False), 32_763_876_352),
    ("qwen2.5-72b", qwen("qwen2", 152064, 8192, 80, 64, 8, 29568, tied=False), 72_706_203_648),
    ("qwen3-0.6b", qwen("qwen3", 151936, 1024, 28, 16, 8, 3072, tied=True, **QWEN3), 596_049_920),
    ("qwen3-1.7b", qwen("qwen3", 151936, 2048, 28, 16, 8, 6144, tied=True, **QWEN3), 1_720_574_976),
    ("qwen3-4b", qwen("qwen3", 151936, 2560, 36, 32, 8, 9728, tied=True, **QWEN3), 4_022_468_096),
    ("qwen3-8b", qwen("qwen3", 151936, 4096, 36, 32, 8, 12288, tied=False, **QWEN3), 8_190_735_360),
    ("qwen3-14b", qwen("qwen3", 151936, 5120, 40, 40, 8, 17408, tied=False, **QWEN3), 14_768_307_200),
    ("qwen3-32b", qwen("qwen3", 151936, 5120, 64, 64, 8, 25600, tied=False, **QWEN3), 32_762_123_264),
    (
        "mistral-nemo",
        shaped("mistral", "MistralForCausalLM", (131072, 5120, 40, 32, 8, 14336), head_dim=128),
        12_247_782_400,
    ),
    (
        "mistral-small-3",
        shaped("mistral", "MistralForCausalLM", (131072, 5120, 40, 32, 8, 32768), head_dim=128),
        23_572_403_200,
    ),
    (
        "ministral-8b",
        shaped("ministral", "MinistralForCausalLM", (131072, 4096, 36, 32, 8, 12288), head_dim=128),
        8_019_808_256,
    ),
    ("gemma-2b", shaped("gemma", "GemmaForCausalLM", (256000, 2048, 18, 8, 1, 16384), **GEMMA), 2_506_172_416),
    ("gemma-7b", shaped("gemma", "GemmaForCausalLM", (256000, 3072, 28, 16, 16, 24576), **GEMMA), 8_537_680_896),
    (
        "granite-3.1-2b",
        shaped("granite", "GraniteForCausalLM", (49155, 2048, 40, 32, 8, 8192), tie_word_embeddings=True),
        2_533_531_648,
    ),
    (
        "granite-3.1-8b",
        shaped("granite", "GraniteForCausalLM", (49155, 4096, 40, 32, 8, 12800), tie_word_embeddings=True),
        8_170_848_256,
    ),
    (
        "seed-oss-36b",
        shaped("seed_oss", "SeedOssForCausalLM", (155136, 5120, 64, 80, 8, 27648), head_dim=128),
        36_151_104_512,
    ),
    (
        "exaone-4.0-1.2b",
        shaped("exaone4", "Exaone4ForCausalLM", (102400, 2048, 30, 32, 8, 4096), tie_word_embeddings=True),
        1_279_391_488,
    ),
    ("exaone-4.0-32b", shaped("exaone4", "Exaone4ForCausalLM", (102400, 5120, 64, 40, 8, 27392)), 32_003_216_384),
]
# Published too, but their numbers are not at hand: the reference on the meta device says them.
CHECKED: list[tuple[str, dict[str, Any]]] = [
    ("command-r7b", COMMAND_R7B),
    ("minitron-8b", shaped("nemotron", "NemotronForCausalLM", (256000, 4096, 32, 48, 8, 16384), head_dim=128)),
    ("afm-4.5b", shaped("arcee", "ArceeForCausalLM", (128004, 2560, 36, 20, 4, 18432))),
]
