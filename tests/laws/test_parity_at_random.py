"""Laws 1 and 4 on shapes that nobody chose: random configurations of every family, odd widths, odd heads, odd rules.

Half the draws are saved and loaded once more. Where the reference itself refuses a draw, another is made.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.models.load import load, save
from openbook.nn.routing import Routed
from tests.families import Case, tokens
from tests.laws.classic_draws import DRAWS as CLASSIC
from tests.laws.encoder_draws import DRAWS as ENCODERS
from tests.laws.modern_draws import DRAWS as MODERN

Draw = Callable[[random.Random], tuple[str, str, dict[str, Any], str]]
ACTIVATIONS = ["silu", "gelu", "gelu_new", "relu", "gelu_pytorch_tanh", "quick_gelu", "tanh", "relu2", "sigmoid"]


def rope(draw: random.Random) -> dict[str, Any]:
    original = {"original_max_position_embeddings": draw.choice([8, 16])}
    rules: list[dict[str, Any]] = [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": draw.choice([1.5, 4.0])},
        {"rope_type": "dynamic", "factor": 3.0},
        {"rope_type": "yarn", "factor": draw.choice([2.0, 8.0]), **original},
        {"rope_type": "yarn", "factor": 4.0, "truncate": False, "attention_factor": 1.3, **original},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, **original},
    ]
    return {**draw.choice(rules), "rope_theta": draw.choice([100.0, 10000.0, 1e6])}


def base(draw: random.Random) -> dict[str, Any]:
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 3])
    return {
        "vocab_size": draw.choice([61, 100, 257]),
        "hidden_size": heads * draw.choice([3, 4, 7, 10]),
        "intermediate_size": draw.choice([1, 5, 17, 64]),
        "num_hidden_layers": draw.choice([1, 2, 4]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw.choice([4, 6, 10, 16, 32]),
        "max_position_embeddings": draw.choice([16, 64]),
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "tie_word_embeddings": draw.random() < 0.5,
        "hidden_act": draw.choice(ACTIVATIONS),
        "rope_parameters": rope(draw),
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def llama(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    bias = {"attention_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5}
    return "LlamaConfig", "LlamaForCausalLM", base(draw) | bias, "decoder"


def mistral(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    window = {"sliding_window": draw.choice([None, 1, 2, 7, 100])}
    return "MistralConfig", "MistralForCausalLM", base(draw) | window, "decoder"


def mixtral(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    experts = draw.choice([1, 3, 8])
    routing = {"num_local_experts": experts, "num_experts_per_tok": draw.randint(1, experts)}
    return "MixtralConfig", "MixtralForCausalLM", base(draw) | routing, "decoder"


def qwen(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    windows = {"use_sliding_window": draw.random() < 0.5, "sliding_window": 3, "max_window_layers": 1}
    return "Qwen3Config", "Qwen3ForCausalLM", base(draw) | windows | {"attention_bias": draw.random() < 0.5}, "decoder"


def gemma(draw: random.Random) -> dict[str, Any]:
    """Norms after each step blow up what one hidden feature leaves: fp32 cannot hold the law for so narrow layers."""
    values = base(draw) | {"intermediate_size": draw.choice([17, 64])}
    values["hidden_activation"] = values.pop("hidden_act")
    return values


def gemma2(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    values = gemma(draw)
    special = {
        "sliding_window": draw.choice([1, 4]),
        "query_pre_attn_scalar": draw.choice([20, 256]),
        "attn_logit_softcapping": draw.choice([None, 3.0, 50.0]),
        "final_logit_softcapping": draw.choice([None, 2.0, 30.0]),
    }
    return "Gemma2Config", "Gemma2ForCausalLM", values | special, "decoder"


def gemma3(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    values = gemma(draw)
    everywhere = {
        key: value for key, value in rope(draw).items() if key != "truncate"
    }  # the reference overlooks it here
    kinds = [draw.choice(["full_attention", "sliding_attention"]) for _ in range(values["num_hidden_layers"])]
    local = {"rope_type": "default", "rope_theta": draw.choice([100.0, 1e4])}
    special = {
        "sliding_window": draw.choice([1, 4]),
        "query_pre_attn_scalar": draw.choice([20, 256]),
        "layer_types": kinds,
        "rope_parameters": {"full_attention": everywhere, "sliding_attention": local},
    }
    return "Gemma3TextConfig", "Gemma3ForCausalLM", values | special, "decoder"


def gpt2(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    heads = draw.choice([1, 3, 5])
    values = {
        "vocab_size": 97,
        "n_embd": heads * draw.choice([1, 3, 8]),
        "n_layer": draw.choice([1, 3]),
        "n_head": heads,
        "n_positions": draw.choice([24, 64]),
        "n_inner": draw.choice([None, 1, 19]),
        "activation_function": draw.choice(ACTIVATIONS),
        "scale_attn_weights": draw.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.5,
        "layer_norm_epsilon": 1e-3,
    }
    return "GPT2Config", "GPT2LMHeadModel", values, "decoder"


def bert(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    heads = draw.choice([1, 3])
    values = {
        "vocab_size": 97,
        "hidden_size": heads * draw.choice([3, 5, 8]),
        "num_hidden_layers": draw.choice([1, 3]),
        "num_attention_heads": heads,
        "intermediate_size": draw.choice([1, 9, 40]),
        "max_position_embeddings": 30,
        "type_vocab_size": draw.choice([1, 2]),
        "hidden_act": draw.choice(ACTIVATIONS),
        "layer_norm_eps": 1e-5,
    }
    return "BertConfig", "BertForMaskedLM", values, "encoder"


def t5(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    values = {
        "vocab_size": 97,
        "d_model": draw.choice([8, 17]),
        "d_kv": draw.choice([1, 5, 8]),
        "d_ff": draw.choice([1, 30]),
        "num_layers": draw.choice([1, 3]),
        "num_decoder_layers": draw.choice([1, 2]),
        "num_heads": draw.choice([1, 3]),
        "relative_attention_num_buckets": draw.choice([4, 8, 32]),
        "relative_attention_max_distance": draw.choice([20, 128]),
        "decoder_start_token_id": 0,
        "feed_forward_proj": draw.choice(["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"]),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    return "T5Config", "T5ForConditionalGeneration", values, "encoder-decoder"


def mamba(draw: random.Random) -> tuple[str, str, dict[str, Any], str]:
    values = {
        "vocab_size": 97,
        "hidden_size": draw.choice([3, 8, 17]),
        "num_hidden_layers": draw.choice([1, 3]),
        "state_size": draw.choice([1, 3, 8]),
        "conv_kernel": draw.choice([2, 3, 5]),
        "expand": draw.choice([1, 2, 3]),
        "time_step_rank": draw.choice(["auto", 1, 5]),
        "use_bias": draw.random() < 0.5,
        "use_conv_bias": draw.random() < 0.5,
        "hidden_act": draw.choice(["silu", "gelu", "relu"]),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    return "MambaConfig", "MambaForCausalLM", values, "decoder"


DRAWS: list[Draw] = [llama, mistral, mixtral, qwen, gemma2, gemma3, gpt2, bert, t5, mamba, *CLASSIC, *ENCODERS, *MODERN]


@torch.no_grad()
def differs(case: Case, folder: Path, again: bool, factor: float = 1.0) -> float:
    """The largest difference of logits over the bound of law 1; above 1 it is broken.

    Some draws are so badly conditioned that fp32 itself is not surer than the law: there the bound is four times what
    the reference differs from itself in fp64.
    """
    reference = case.reference()
    reference.config._experts_implementation = "eager"
    reference.save_pretrained(folder)
    model = load(folder)
    if again:
        save(model, folder / "again")
        model, first = load(folder / "again"), model
        assert model.spec == first.spec
        assert model.config["model_type"] == first.config["model_type"]
    model.embed.tokens.weight.mul_(factor)
    ids = tokens(case, 3, 23)
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    if case.kind == "encoder-decoder":
        inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :9]}
        ours, real = model(ids[:, :9], source=ids, source_segments=mask), torch.ones_like(ids[:, :9])
    else:
        inputs, real, routers = {"input_ids": ids, "attention_mask": mask}, mask, list[Routed]()
        ours = model(ids, segments=mask, routers=routers)
        if any(undecided(routed.logits, case.values["num_experts_per_tok"]) for routed in routers):
            return 0.0
    theirs = reference(**inputs).logits[real == 1]
    exact = reference.double()(**inputs).logits[real == 1]
    unsure = (theirs - exact).abs().nan_to_num(0.0)  # some masks of the reference give NaN in fp64, and only there
    bound = max(1e-5 * max(1.0, float(theirs.abs().max())), 4 * float(unsure.max()))
    return float((ours[real == 1] - theirs).abs().max() / bound)


def undecided(logits: Tensor, top_k: int) -> bool:
    """Whether rounding alone decides which experts some token goes to."""
    ordered = logits.softmax(dim=-1).sort(dim=-1, descending=True).values
    return top_k < logits.shape[-1] and bool((ordered[:, top_k - 1] - ordered[:, top_k]).min() < 1e-5)


def run(draw: Draw, seeds: range, root: Path) -> None:
    for seed in seeds:
        chance = random.Random(f"{draw.__name__} {seed}")
        case = Case(f"{draw.__name__}-{seed}", *draw(chance))
        assert differs(case, root / str(seed), again=bool(seed % 2)) <= 1, case


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_a_few_random_shapes(draw: Draw, tmp_path: Path) -> None:
    run(draw, range(6), tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_many_random_shapes(draw: Draw, tmp_path: Path) -> None:
    run(draw, range(6, 120), tmp_path)


def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    """The seeded fault: what is loaded is a little off."""
    case = Case("fault", *llama(random.Random(0)))
    assert differs(case, tmp_path / "right", again=False) <= 1
    assert differs(case, tmp_path / "wrong", again=False, factor=1.001) > 1
