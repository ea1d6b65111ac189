"""A config.json that lies, is damaged or is hostile: a clear error that says where, and nothing else happens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import ConfigError, OpenbookError, OpenbookWarning
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.models.registry import known, read, say
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.plain import to_plain
from tests.families import ALL, Case, each
from tests.models.damage import CONFIG, change_config, folder

SLIDING = {**CONFIG, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}
T5 = {"model_type": "t5", "vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3}
MIXTRAL = {**CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}

QUICK = ("llama", "mixtral", "mamba", "bert", "t5")


def said(config: dict[str, Any], where: str = "config.json") -> str:
    """The message of the error that reading gives."""
    with pytest.raises(ConfigError) as error:
        read(config, where)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "must hold a JSON object: got list"),
        (b"", "not valid JSON"),
        (b'{"model_type": "lla', "half written by an interrupted copy"),
        (b"\xff\xfe\x00{", "not UTF-8"),
        (b"[" * 100_000, "nests too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nests too deeply"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "digits"),
        (b"null", "got NoneType"),
        (b"{}", "model type None"),
    ],
    ids=["list", "empty", "cut", "binary", "nested", "deep", "digits", "null", "nothing"],
)
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json.*interrupted"):
        load(path)
    (path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load(path)


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -3, 2**31, 10**30, True, "12", 1.5, [12], {}, float("nan")])
def test_sizes_are_sizes(key: str, value: object) -> None:
    message = said({**CONFIG, key: value}, "'x/config.json'")
    assert f"`{key}`" in message
    assert "'x/config.json'" in message


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert read({**CONFIG, "vocab_size": 37.0})[1] == read(CONFIG)[1]


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_no_kv_heads_is_one_for_each_head_but_silence_is_the_familys_rule(family: str) -> None:
    config = {**CONFIG, "model_type": family, "architectures": None, "num_attention_heads": 16, "hidden_size": 64}
    heads = []
    for said_ in ({**config, "num_key_value_heads": None}, {k: v for k, v in config.items() if "key_value" not in k}):
        attention = read(said_)[1].stack.blocks[0].branches[0].layer
        assert isinstance(attention, spec.Attention)
        heads.append(attention.kv_heads)
    assert heads == [16, 8]


def test_missing_size_names_the_nearest_key() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "hidden_size"} | {"hiden_size": 12}
    assert "`hidden_size` is missing" in said(config)
    assert "Did you mean 'hiden_size'" in said(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 12, "num_key_value_heads": 5, "head_dim": 4}, "Use 1, 2, 3, 4, 6 or 12."),
        ({"num_attention_heads": 2**31 - 1, "num_key_value_heads": 2, "head_dim": 4}, "must divide `heads`"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "`num_attention_heads` must divide `hidden_size`"),
        ({"rms_norm_eps": -1e-5}, "`eps` must not be below 0"),
        ({"rms_norm_eps": float("nan")}, "must be finite"),
        ({"rms_norm_eps": float("inf")}, "must be finite"),
        ({"attention_dropout": 1.5}, "`dropout` must be at least 0 and below 1"),
        ({"rope_theta": -1.0}, "`rope_theta` must be positive"),
        ({"partial_rotary_factor": 2.0}, "above 0 and at most 1"),
        ({"hidden_act": "siluu"}, "Unknown activation 'siluu' (`hidden_act` in config.json). Did you mean 'silu'"),
        ({"hidden_act": 3}, "`hidden_act` must be of type str"),
        ({"tie_word_embeddings": "no"}, "`tie_word_embeddings` must be of type bool"),
        ({"rope_scaling": {"rope_type": "yarm", "factor": 2.0}}, "Unknown rope type 'yarm'"),
        ({"rope_scaling": {"rope_type": "yarm", "factor": 2.0}}, "Did you mean 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "`factor` must be a positive number: got None in rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "`factor` must be a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "`factor` must be of type float"),
        ({"rope_scaling": "linear"}, "rope_scaling of config.json must be an object: got str"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 1.0}}, "below the high one"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised ('gptq')"),
        ({"architectures": ["LlamaForCausalLN"]}, "Did you mean 'LlamaForCausalLM'"),
        ({"architectures": [{}]}, "is not known for 'llama'"),
        ({"id2label": "x"}, "`id2label` must be of type dict"),
        ({"architectures": "LlamaModel"}, "is not known for 'llama'"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 3 * 2**10}, "The embedding would hold"),
        ({"intermediate_size": 2**31 - 1, "hidden_size": 3 * 2**20}, "would hold a matrix of"),
    ],
)
def test_impossible_values(changes: dict[str, Any], message: str) -> None:
    assert message in said({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SLIDING, "layer_types": ["full_attention", "sliding"]}, "Unknown layer type 'sliding'"),
        ({**SLIDING, "layer_types": ["full_attention"]}, "must list 2 layers"),
        ({**SLIDING, "layer_types": "full"}, "must list 2 layers"),
        ({**SLIDING, "sliding_window": -4, "max_window_layers": 0}, "`window` must be 1 to"),
        ({**T5, "relative_attention_num_buckets": 3}, "must be even"),
        ({**T5, "relative_attention_max_distance": 4}, "`distance` beyond the exact ones"),
        ({**T5, "feed_forward_proj": "gated-x"}, "Unknown activation 'x'"),
        ({**MIXTRAL, "num_experts_per_tok": 9}, "`top_k` must be 1 to `experts`"),
        ({**MIXTRAL, "num_local_experts": 2**31 - 1}, "experts"),
        ({**MIXTRAL, "router_jitter_noise": 2.0}, "`jitter` must be"),
    ],
)
def test_impossible_values_of_families(config: dict[str, Any], message: str) -> None:
    assert message in said(config)


def test_an_architecture_in_an_older_spelling() -> None:
    """As published with mpt-7b, and with the first conversions of Llama."""
    assert read({**CONFIG, "architectures": ["LLaMAForCausalLM"]})[1] == read(CONFIG)[1]


def test_unknown_model_type_lists_the_nearest_and_all() -> None:
    message = said({**CONFIG, "model_type": "lama"})
    assert "Did you mean 'llama'" in message
    assert all(name in message for name in known())
    assert "not one of the families" in said({**CONFIG, "model_type": ["llama"]})


@pytest.mark.filterwarnings("ignore::openbook.errors.OpenbookWarning")
@each(ALL, quick=QUICK)
def test_no_value_of_any_key_is_more_than_an_error(case: Case) -> None:
    """Every key of every family with every kind of wrong value: understood, or an error of ours."""
    config = json.loads(case.reference().config.to_json_string(use_diff=False))
    wrong = [None, -1, 0, 3, True, "x", 1e308, float("nan"), -0.5, 1.5, [], [{}], {}, {"a": 1}, 10**30]
    keys = [*config, "rope_scaling", "rope_theta", "partial_rotary_factor", "layer_types", "id2label", "head_dim"]
    rules = config.get("rope_parameters") or {}
    tries = [{**config, key: value} for key in keys for value in wrong]
    tries += [{**config, "rope_parameters": {**rules, key: value}} for key in [*rules, "factor"] for value in wrong]
    understood = 0
    for one in tries:
        try:
            _, model = read(one)
        except OpenbookError:
            continue
        with torch.device("meta"):
            build(model)
        understood += 1
    assert understood > len(tries) // 4


# ------------------------------------------------------------------------------------------------ keys


def test_unknown_keys_warn_and_inert_ones_are_kept(tmp_path: Path) -> None:
    path = folder(tmp_path)
    inert = {"bos_token_id": 5, "eos_token_id": [6, 7], "use_cache": False, "_name_or_path": "a/b"}
    change_config(path, **inert, residual_multiplier=3.0, another=1)
    with pytest.warns(OpenbookWarning, match=r"`another`, `residual_multiplier` not known, no effect"):
        model = load(path)
    save(model, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: again[key] for key in inert} == inert
    assert "residual_multiplier" not in again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "again")


def test_unknown_rope_keys_warn() -> None:
    with pytest.warns(OpenbookWarning, match="`fast` not known"):
        read({**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "fast": 1}})


# ------------------------------------------------------------------------------------------------ written specs


def spelled(changes: dict[str, Any]) -> dict[str, Any]:
    """A config.json that holds a spec, with keys of the spec changed."""
    return {"model_type": "openbook", "spec": {**to_plain(read(CONFIG)[1]), **changes}}


def state_space(**rank: int) -> dict[str, Any]:
    """A stack of one selective state space."""
    return {"type": "Stack", "dim": 12, "blocks": [{"layer": {"type": "Selective", "inner": 24, **rank}}]}


LAYER = {"type": "MLP", "hidden": 4}
MANY = {"repeat": 10_000, "of": {"type": "Branch", "layer": LAYER}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Modle"}, "`type` of `spec`"),
        ({"type": []}, "`type` of `spec`"),
        ({"embed": {"type": "Embed", "vocab": 3}}, "needs `dim`"),
        ({"embed": {"type": "Embed", "vocab": 3, "dim": 4, "dims": 4}}, "Unknown key `dims`"),
        ({"embed": {"type": "Embed", "vocab": "3", "dim": 4}}, "must be int: got '3'"),
        ({"embed": {"type": "Embed", "vocab": 3, "dim": 12, "padding": 3}}, "`padding` must be below `vocab`"),
        ({"context": -1}, "`context` must be 1"),
        ({"stack": state_space()}, "needs `rank`"),
        ({"stack": state_space(rank=0)}, "`rank` must be 1"),
        ({"stack": {"type": "Stack", "dim": 12, "blocks": [{"repeat": 0, "of": {"type": "Block"}}]}}, "`repeat`"),
        ({"stack": {"type": "Stack", "dim": 12, "blocks": [{"repeat": 9999, "of": {"branches": [MANY]}}]}}, "at most"),
        ({"stack": {"type": "Stack", "dim": 12, "blocks": [{"branches": [MANY, MANY]}]}}, "at most"),
        ({"heads": [{"type": "Classes", "count": 2, "name": "a.b", "over": "last"}]}, "cannot be called 'a.b'"),
        ({"heads": [{"type": "Classes", "count": 2, "name": "items", "over": "last"}]}, "cannot be called 'items'"),
        ({"heads": [{"type": "Classes", "count": 2}]}, "needs a Pooler"),
        ({"heads": [{"type": "Pooler"}, {"type": "Pooler"}]}, "Every head needs its own name"),
        ({"embed": {"type": "Embed", "vocab": 3, "dim": 5}, "heads": [{"type": "Language"}]}, "A tied head needs"),
    ],
)
def test_hostile_specs(changes: dict[str, Any], message: str) -> None:
    assert message in said(spelled(changes))


def test_a_spec_may_be_widened() -> None:
    _, model = read(spelled({"embed": {"type": "Embed", "vocab": 9, "dim": 5}}))
    assert make(model)(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 9)


def test_one_layer_scaled_by_its_number_is_said_by_its_family() -> None:
    config = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 12, "n_layer": 1, "n_head": 3}
    _, model = read({**config, "scale_attn_by_inverse_layer_idx": True})
    family, written = say(model, "gpt2")
    assert family.model_type == "gpt2"
    assert read(written)[1] == model
