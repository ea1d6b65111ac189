"""Classic decoders beside their language head: bare models and class heads, older spellings, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import ConfigError
from openbook.generate.packed import BLOCK, Biases
from openbook.models.describe import describe
from openbook.models.load import load, save
from openbook.models.registry import read, say
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.embed import LinearBias
from openbook.nn.init import initialise
from tests.families import tokens
from tests.families.classic import CASES

CLASSIC = {case.name: case for case in CASES}
BOUND = 1e-5


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).abs().max() <= BOUND * max(1.0, float(theirs.abs().max())))


# ------------------------------------------------------------------------------------------------ other heads

PUBLISHED = {
    "openai-gpt": "OpenAIGPT Model ForSequenceClassification",
    "gpt_neo": "GPTNeo Model ForSequenceClassification ForTokenClassification ForQuestionAnswering",
    "gptj": "GPTJ Model ForSequenceClassification ForQuestionAnswering",
    "codegen": "CodeGen Model",
    "gpt_neox": "GPTNeoX Model ForSequenceClassification ForTokenClassification ForQuestionAnswering",
    "gpt_bigcode": "GPTBigCode Model ForSequenceClassification ForTokenClassification",
    "falcon-new": "Falcon Model ForSequenceClassification ForTokenClassification ForQuestionAnswering",
    "bloom": "Bloom Model ForSequenceClassification ForTokenClassification ForQuestionAnswering",
    "mpt": "Mpt Model ForSequenceClassification ForTokenClassification ForQuestionAnswering",
    "opt-narrow": "OPT Model ForSequenceClassification ForQuestionAnswering",
    "phi": "Phi Model ForSequenceClassification ForTokenClassification",
    "stablelm": "StableLm Model ForSequenceClassification",
}
OTHERS = [(name, both.split()[0] + kind) for name, both in PUBLISHED.items() for kind in both.split()[1:]]


@torch.no_grad()
@pytest.mark.parametrize(("name", "architecture"), OTHERS, ids=[architecture for _, architecture in OTHERS])
def test_bare_models_and_class_heads(name: str, architecture: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(5)
    case = CLASSIC[name]
    labels = {} if "Question" in architecture else {"num_labels": 4}
    config = getattr(transformers, case.config)(**{**case.values, "pad_token_id": 0}, **labels)
    reference = getattr(transformers, architecture)(config).eval()
    reference.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    ids = tokens(case, 2, 9)
    found = reference(ids)
    for folder in ("theirs", "ours"):
        model = load(tmp_path / folder)
        if architecture.endswith("Model"):
            assert close(model.encode(ids), found.last_hidden_state)
        elif "Question" in architecture:
            both = torch.stack([found.start_logits, found.end_logits], dim=-1)
            assert close(model.classify(model.encode(ids), "span"), both)
        else:
            assert close(model(ids), found.logits)


# ------------------------------------------------------------------------------------------------ spellings


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """The case's config.json with some keys changed, or taken away where they are None."""
    case = CLASSIC[name]
    said = {**json.loads(case.reference().config.to_json_string(use_diff=False)), **changes}
    return {key: value for key, value in said.items() if key not in changes or value is not None}


OLD: list[tuple[str, dict[str, Any]]] = [
    ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 5000}),
    ("bloom", {"hidden_size": None, "n_embed": 60, "n_layer": None, "num_hidden_layers": 3, "offset_alibi": 100}),
    ("bloom", {"n_head": None, "num_attention_heads": 6, "seq_length": 2048, "unk_token_id": 0}),
    ("falcon", {"hidden_size": None, "n_embed": 60, "apply_residual_connection_post_layernorm": False}),
    ("falcon", {"rope_parameters": None, "rope_theta": 5000.0, "num_kv_heads": None, "ffn_hidden_size": None}),
    ("stablelm", {"rope_parameters": None, "rope_theta": 5000.0, "rope_pct": 0.5}),
    ("phi", {"rope_parameters": None, "rope_theta": 5000.0}),
    (
        "gptj",
        {"rotary": True, "scale_attn_weights": True, "summary_type": "cls_index", "n_ctx": 64},
    ),
    ("gpt_neo", {"attention_layers": None}),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "changes"), OLD, ids=[f"{name} {', '.join(keys)}" for name, keys in OLD])
def test_older_spellings_say_the_same(name: str, changes: dict[str, Any]) -> None:
    assert read(config_of(name, **changes))[1] == read(config_of(name))[1]


# Extra keys of published config.json files, which change nothing, beside what the cases say.
HUB: list[tuple[str, dict[str, Any]]] = [
    ("gpt_neox", {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_fast"}),
    ("gptj", {"rotary": True, "scale_attn_weights": True, "n_inner": None, "gradient_checkpointing": False}),
    ("gpt_neo", {"summary_type": "cls_index", "summary_use_proj": True, "gradient_checkpointing": False}),
    ("bloom", {"masked_softmax_fusion": True, "bias_dropout_fusion": True, "skip_bias_add": True, "n_inner": None}),
    ("mpt", {"embedding_fraction": 1.0, "init_device": "cpu", "tokenizer_name": "x", "verbose": 0, "init_config": {}}),
    ("opt", {"activation_dropout": 0.0, "layerdrop": 0.0, "prefix": "</s>"}),
    ("gpt_bigcode", {"inference_runner": 0, "max_batch_size": None, "pad_key_length": True, "summary_type": "x"}),
    ("openai-gpt", {"n_ctx": 64, "n_special": 0, "predict_special_tokens": True, "task_specific_params": {}}),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "extra"), HUB, ids=[name for name, _ in HUB])
def test_published_keys_are_known(name: str, extra: dict[str, Any]) -> None:
    assert read({**config_of(name), **extra})[0].model_type == CLASSIC[name].reference().config.model_type


@torch.no_grad()
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "prefix", "buffers"),
    [
        ("bloom", "transformer.", ()),
        ("openai-gpt", "transformer.", ("transformer.h.0.attn.bias",)),
        ("gpt_neo", "", ("transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias")),
        ("gptj", "", ("transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("gpt_neox", "", ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq")),
        ("opt", "model.", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders_as_they_were_first_published(name: str, prefix: str, buffers: tuple[str, ...], tmp_path: Path) -> None:
    """Without the base's prefix, or with tables that are no parameters."""
    from safetensors.torch import load_file, save_file

    case = CLASSIC[name]
    folder = case.folder(tmp_path)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors |= {buffer.removeprefix(prefix): torch.ones(1, 1, 4, 4) for buffer in buffers}
    ids = tokens(case, 2, 9)
    expected = load(folder)(ids)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load(folder)(ids), expected)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mpt", {"attn_config": {"qk_ln": True}}, "`qk_ln` = True"),
    ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "`attn_type`"),
    ("mpt", {"attn_config": {"alibi": False}}, "`alibi`"),
    ("mpt", {"attn_config": {"alibi_bias_max": 0}}, "`alibi_bias_max` must be above 0"),
    ("mpt", {"attn_config": {"clip_qkv": -1.0}}, "`clip` must be above 0"),
    ("mpt", {"no_bias": False}, "`no_bias`"),
    ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "`logit_scale`"),
    ("mpt", {"norm_type": "rmsnorm"}, "`norm_type` must be one of"),
    ("mpt", {"expansion_ratio": 8}, "`expansion_ratio`"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "`apply_residual_connection_post_layernorm`"),
    ("bloom", {"n_inner": 7}, "`n_inner` must be four times"),
    ("falcon", {"num_ln_in_parallel_attn": 2}, "needs `new_decoder_architecture`"),
    ("falcon-new", {"parallel_attn": False}, "goes with `parallel_attn`"),
    ("falcon-new", {"num_ln_in_parallel_attn": 3}, "1 or 2 for `num_ln_in_parallel_attn`"),
    ("falcon-new", {"num_kv_heads": 4}, "`kv_heads` must divide `heads`"),
    ("gptj", {"rotary_dim": 7}, "`rotary_dim` must be even"),
    ("gptj", {"rotary": False}, "`rotary`"),
    ("codegen", {"n_head": 6}, "`n_head` must be a multiple of 4"),
    ("gpt_neo", {"attention_types": [[["global"], 3]]}, "'global' or 'local' for 4 layers"),
    ("gpt_neo", {"attention_types": [[["blocked"], 4]]}, "'global' or 'local'"),
    ("gpt_neo", {"attention_types": [["global", "x"]]}, "`attention_types`"),
    ("gpt_neo", {"attention_types": 4}, "`attention_types` must be a list"),
    ("openai-gpt", {"afn": "gelo"}, "Unknown activation 'gelo'"),
    ("opt", {"layer_norm_elementwise_affine": False}, "`layer_norm_elementwise_affine`"),
    ("opt", {"layerdrop": 0.1}, "`layerdrop`"),
    ("gpt_bigcode", {"add_cross_attention": True}, "`add_cross_attention`"),
    ("gpt_neox", {"num_attention_heads": 7}, "`num_attention_heads` must divide `hidden_size`"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[f"{n} {m}" for n, _, m in REFUSED])
def test_what_would_compute_something_else_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read(config_of(name, **changes))


# ------------------------------------------------------------------------------------------------ ALiBi


def test_slopes_are_those_of_the_paper() -> None:
    """Press et al. 2022, §3: 8 heads 1/2, 1/4 … 1/256; 16 heads the square roots between; others take from both."""
    eight = [2.0**-k for k in range(1, 9)]
    sixteen = [2.0 ** (-k / 2) for k in range(1, 17)]

    def slopes(heads: int, **values: float) -> list[float]:
        return LinearBias(spec.Alibi(heads=heads, **values)).slopes(torch.device("cpu")).tolist()

    assert slopes(8) == eight
    assert slopes(16) == pytest.approx(sixteen, rel=1e-6)
    assert slopes(11) == pytest.approx([*eight, sixteen[0], sixteen[2], sixteen[4]], rel=1e-6)
    assert slopes(1) == [2.0**-8]
    assert slopes(4, most=16.0, scale=0.5) == [2.0**-5, 2.0**-9, 2.0**-13, 2.0**-17]


def test_a_shard_has_the_slopes_of_its_heads() -> None:
    bias, shard = (LinearBias(spec.Alibi(heads=6)) for _ in range(2))
    shard.span = (2, 5)
    at = torch.arange(7).unsqueeze(0)
    assert torch.equal(bias(at, at)[:, 2:5], shard(at, at))
    assert torch.equal(bias(at, at), bias(at + 1000, at + 1000))  # the distance alone counts
    assert not bias.state_dict()


def test_the_engine_takes_the_same_biases_by_distance() -> None:
    """Tabulated block by block, to the last bit what whole rows get."""
    bias = LinearBias(spec.Alibi(heads=6, most=7.0, scale=0.3))
    at = torch.arange(3 * BLOCK - 5).unsqueeze(0)
    whole = bias(at[:, -1:], at)[0, :, 0].flip(-1)
    table = Biases().upto(bias, at.shape[1], torch.device("cpu"))
    assert table.shape == (6, 3 * BLOCK)
    assert torch.equal(table[:, : at.shape[1]], whole)


def test_the_page_says_what_there_is() -> None:
    for name, said in {
        "mpt-clipped": "ALiBi · slopes down to 2^-8",
        "falcon-alibi": "× 0.3162",
        "opt-narrow": "tokens of 28 widened",
        "gptj": "neighbours",
        "phi": "parallel after LayerNorm",
    }.items():
        assert said in describe(config_of(name)).page()


def test_steeper_slopes_are_written_again() -> None:
    """`alibi_bias_max`, which the reference reads and ignores, changes what is computed and is written again."""
    usual, steep = (read(config_of("mpt", attn_config={"alibi_bias_max": most}))[1] for most in (8, 16))
    models = [build(one) for one in (usual, steep)]
    for model in models:
        initialise(model, 3, std=0.5)
    ids = tokens(CLASSIC["mpt"], 1, 9)
    assert not close(*(model(ids).detach() for model in models))
    family, said = say(steep, "mpt")
    assert (family.model_type, said["attn_config"]["alibi_bias_max"]) == ("mpt", 16)
    assert read(said)[1] == steep


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0.0}, "`scale` of ALiBi must be above 0"),
        ({"most": -1.0}, "`most` must be above 0"),
        ({"heads": 5}, "a stack with `relative` of as many heads"),
    ],
    ids=str,
)
def test_alibi_out_of_range(values: dict[str, Any], message: str) -> None:
    attention = spec.Attention(heads=4, kv_heads=4, head_dim=4, relative=True)
    stack = spec.Stack(
        dim=8,
        blocks=(spec.Block(branches=(spec.Branch(layer=attention),)),),
        relative=spec.Alibi(**{"heads": 4, **values}),
    )
    with pytest.raises(ConfigError, match=message):
        build(spec.Model(embed=spec.Embed(vocab=9, dim=8), stack=stack, heads=()))


# ------------------------------------------------------------------------------------------------ widths


@pytest.mark.parametrize(
    ("embed", "stack", "message"),
    [
        ({"inner": 4, "dim": 6}, {}, "must have the stack's `dim`"),
        ({"inner": 4}, {}, "A tied head needs an embedding as wide as .*: got 4 and 8"),
        ({}, {"out": 4}, "A tied head needs an embedding as wide as .*: got 8 and 4"),
        ({"inner": 0}, {}, "`inner` must be 1 to"),
    ],
    ids=str,
)
def test_widths_that_do_not_fit(embed: dict[str, int], stack: dict[str, int], message: str) -> None:
    block = spec.Block(branches=(spec.Branch(layer=spec.MLP(hidden=8)),))
    model = spec.Model(
        embed=spec.Embed(**{"vocab": 9, "dim": 8, **embed}),
        stack=spec.Stack(dim=8, blocks=(block,), **stack),
        heads=(spec.Language(),),
    )
    with pytest.raises(ConfigError, match=message):
        build(model)
