"""Newer dense decoders beside their language head: bare models and class heads, older spellings, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import ConfigError
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.models.registry import read, say
from openbook.nn import spec
from openbook.nn.build import check
from tests.families import tokens
from tests.families.modern import CASES

MODERN = {case.name: case for case in CASES}
BOUND = 1e-5


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).abs().max() <= BOUND * max(1.0, float(theirs.abs().max())))


# ------------------------------------------------------------------------------------------------ other heads

LAST, BOTH = "Model ForSequenceClassification", "Model ForSequenceClassification ForTokenClassification"
PUBLISHED = {
    **dict.fromkeys(("starcoder2", "phi3", "glm", "glm4", "smollm3", "ministral", "ministral3", "gemma"), BOTH),
    **dict.fromkeys(("exaone4", "seed_oss", "arcee", "nemotron"), BOTH),
    **dict.fromkeys(("olmo", "olmo2", "olmo3"), LAST),
    **dict.fromkeys(("cohere", "cohere2", "granite"), "Model"),
    "llama4": "TextModel",
}
OTHERS = [
    (name, MODERN[name].config.removesuffix("Config") + kind) for name in PUBLISHED for kind in PUBLISHED[name].split()
]
OTHERS = [(name, architecture.replace("TextText", "Text")) for name, architecture in OTHERS]


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), OTHERS, ids=[architecture for _, architecture in OTHERS])
def test_bare_models_and_class_heads(name: str, architecture: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(5)
    case = MODERN[name]
    config = getattr(transformers, case.config)(**{**case.values, "pad_token_id": 0}, num_labels=4)
    config._attn_implementation = "eager"
    reference = getattr(transformers, architecture)(config).eval()
    reference.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    ids = tokens(case, 2, 9)
    found = reference(ids)
    for folder in ("theirs", "ours"):
        model = load(tmp_path / folder)
        if architecture.endswith("Model"):
            assert close(model.encode(ids), found.last_hidden_state)
        else:
            assert close(model(ids), found.logits)


# ------------------------------------------------------------------------------------------------ spellings


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """The case's config.json with some keys changed, or taken away where they are None."""
    case = MODERN[name]
    said = {**json.loads(case.reference().config.to_json_string(use_diff=False)), **changes}
    return {key: value for key, value in said.items() if key not in changes or value is not None}


LONG = MODERN["phi3-longrope"].values["rope_parameters"]
FACTORS = {key: LONG[key] for key in ("short_factor", "long_factor")}
OLD_PHI = {"rope_parameters": None, "rope_theta": 5000.0, "partial_rotary_factor": 0.75}
OLD: list[tuple[str, dict[str, Any]]] = [
    *(("phi3-longrope", {**OLD_PHI, "rope_scaling": {"type": kind, **FACTORS}}) for kind in ("su", "yarn", "longrope")),
    ("cohere2", {"layer_types": None, "sliding_window_pattern": 4}),
    ("olmo3", {"layer_types": None}),
    ("exaone4", {"layer_types": None}),
    ("exaone4", {"sliding_window_pattern": "LLG"}),
    ("smollm3", {"no_rope_layers": None, "layer_types": None}),
    ("llama4", {"no_rope_layers": [], "layer_types": None, "moe_layers": None}),
    ("llama4", {"attn_temperature_tuning": 4, "for_llm_compressor": False}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),
    ("phi3", {"original_max_position_embeddings": None, "embd_pdrop": 0.0, "attention_bias": False}),
    ("glm", {"rope_parameters": None, "rope_theta": 5000.0, "partial_rotary_factor": 0.5}),
    ("nemotron", {"rope_parameters": None, "rope_theta": 5000.0}),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "changes"), OLD, ids=[f"{name} {', '.join(keys)}" for name, keys in OLD])
def test_older_spellings_say_the_same(name: str, changes: dict[str, Any]) -> None:
    assert read(config_of(name, **changes))[1] == read(config_of(name))[1]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("phi3-longrope", {"rope_parameters": {**LONG, "short_factor": [1.0]}}, "a short and a long factor for each of 3"),
    ("phi3-longrope", {"rope_parameters": {**LONG, "long_factor": [1.0, 0.0, 2.0]}}, "finite numbers above 0: got 0"),
    ("phi3-longrope", {"rope_parameters": {**LONG, "long_factor": "x"}}, "`long_factor` must be a list of numbers"),
    ("phi3", {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4}}, "Unknown rope type 'ntk'"),
    ("olmo", {"clip_qkv": -1.0}, "`clip` must be above 0"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "a 0 or 1 for each of 3 layers"),
    ("smollm3", {"no_rope_layers": [1, 0, 2]}, "a 0 or 1 for each of 3 layers"),
    ("cohere2", {"sliding_window": 0}, "`window` must be 1 to"),
    ("llama4", {"layer_types": ["sliding_attention"] * 4}, "'full_attention' and 'chunked_attention' are known"),
    (
        "llama4-even",
        {"layer_types": ["chunked_attention"] * 4},
        "chunked attention but `attention_chunk_size` is not set",
    ),
    ("llama4", {"moe_layers": "all"}, "`moe_layers` must list numbers"),
    ("llama4", {"floor_scale": 0}, "`floor_scale`"),
    ("llama4", {"attn_temperature_tuning": "no"}, "`attn_temperature_tuning` must be true or false"),
    ("ministral3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "need `llama_4_scaling_beta`"),
    ("granite", {"logits_scaling": 0.0}, "`logits_scaling` must be above 0"),
    ("gemma", {"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[f"{n} {m}" for n, _, m in REFUSED])
def test_what_would_compute_something_else_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read(config_of(name, **changes))


# ------------------------------------------------------------------------------------------------ parts as values


def decoder(attention: spec.Attention, norm: spec.Norm, place: spec.Place = "pre") -> spec.Model:
    branches = (
        spec.Branch(layer=attention, norm=norm, place=place),
        spec.Branch(layer=spec.MLP(hidden=12), norm=norm, place=place),
    )
    stack = spec.Stack(dim=8, blocks=(spec.Block(branches=branches),) * 2, final_norm=norm)
    return spec.Model(embed=spec.Embed(vocab=11, dim=8), stack=stack, heads=(spec.Language(),))


def test_any_part_goes_with_any_other(tmp_path: Path) -> None:
    """What no family has together is built, initialised, saved as it is and read again."""
    each = spec.QueryKeyNorm(norm=spec.Norm(kind="layer", bias=True, offset=1.0), over="heads", rotated=True)
    attention = spec.Attention(
        heads=2,
        kv_heads=1,
        head_dim=6,
        pattern=spec.Pattern(window=3, chunk=5),
        rope=spec.Rope(dim=4, scaling=spec.NtkScaling(factor=3.0), neighbours=True),
        norm=each,
        temperature=spec.Temperature(every=3, scale=0.5),
        clip=2.0,
    )
    model = make(decoder(attention, spec.Norm(weight=False), "after"), seed=3)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    with pytest.warns(UserWarning, match="No published family"):
        save(model, tmp_path / "odd")
    again = load(tmp_path / "odd")
    assert again.spec == model.spec
    ids = torch.randint(0, 11, (2, 9))
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (spec.Norm(weight=False, bias=True), "A norm without a weight has no bias"),
        (spec.Norm(weight=False, offset=1.0), "A norm without a weight has no bias and no offset"),
    ],
)
def test_norms_that_cannot_be(norm: spec.Norm, message: str) -> None:
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=4, norm=spec.QueryKeyNorm(norm=norm))
    with pytest.raises(ConfigError, match=message):
        check(decoder(attention, spec.Norm()))


def test_a_model_whose_first_layer_has_no_positions_is_said() -> None:
    config = config_of("smollm3-window")
    family, model = read(config)
    assert say(model, family.model_type, config)[0].model_type == "smollm3"
