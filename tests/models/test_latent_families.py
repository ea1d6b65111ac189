"""The DeepSeek line's config.json: as the hubs hold it, under another name, silent, null, and wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import ConfigError, OpenbookWarning
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.models.registry import read, say
from openbook.nn import spec
from tests.families.latent import CASES, SMALL, YARN
from tests.laws.test_parity import agrees
from tests.models.published_latent import GLM, KNOWN, V2, V2_LITE, V3, Known


def latent_of(config: dict[str, Any]) -> spec.LatentAttention:
    layer = read(config)[1].stack.blocks[0].branches[0].layer
    assert isinstance(layer, spec.LatentAttention)
    return layer


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_what_the_hubs_hold_is_read_and_written(known: Known) -> None:
    """Every key is known, and what is written reads back as the same value, YaRN's sharper scores to the last bit."""
    family, model = read(known.config)
    again, said = say(model, family.model_type, known.config)
    assert again.model_type == known.config["model_type"]
    assert read(said)[1] == model


def test_yarn_sharpens_scores() -> None:
    """mscale² on the scores; on the angles the quotient, here one (DeepSeek-AI 2024a, §3.1.4)."""
    layer = latent_of(V3)
    assert isinstance(layer.rope.scaling, spec.YarnScaling)
    assert layer.rope.scaling.attention == 1.0
    assert layer.scale == pytest.approx(192**-0.5 * (0.1 * 3.6888794541139363 + 1) ** 2)
    assert latent_of({**V3, "rope_scaling": None}).scale is None


def test_silence_and_null_of_the_rank_of_queries() -> None:
    assert latent_of(V2).q_rank == 1536
    assert latent_of(V2_LITE).q_rank is None
    assert latent_of({key: value for key, value in V2_LITE.items() if key != "q_lora_rank"}).q_rank == 1536


def test_kimi_is_deepseek_under_another_name(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "deepseek3-yarn")
    folder = case.folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "kimi_k2"}))
    model = load(folder)
    assert agrees(case, model)
    save(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "kimi_k2"
    assert agrees(case, load(tmp_path / "again"))


def test_a_model_that_predicts_ahead_is_said() -> None:
    family, model = read(V3)
    assert model.ahead is not None
    assert model.ahead.block == model.stack.blocks[-1]
    assert model.ahead.depth == 1
    deeper = replace(model, heads=(model.heads[0], replace(model.ahead, depth=3)))
    said = say(deeper, family.model_type)[1]
    assert said["num_nextn_predict_layers"] == 3
    assert read(said)[1] == deeper
    assert read({**V3, "num_nextn_predict_layers": 0})[1].ahead is None


def test_a_spec_that_the_family_cannot_say_is_saved_as_it_is() -> None:
    _, model = read(V3)
    block = model.stack.blocks[-1]
    wide = replace(block.branches[1], layer=replace(block.branches[1].layer, shared=spec.MLP(hidden=100)))
    blocks = (*model.stack.blocks[:-1], replace(block, branches=(block.branches[0], wide)))
    other = replace(model, stack=replace(model.stack, blocks=blocks), heads=model.heads[:1])
    with pytest.warns(match="No published family"):
        assert say(other, "deepseek_v3")[0].model_type == "openbook"


SMALL_V3 = {**SMALL, "model_type": "deepseek_v3"}
SMALL_V2 = {**SMALL, "model_type": "deepseek_v2"}
LITE = {key: value for key, value in SMALL.items() if key != "first_k_dense_replace"} | {"model_type": "glm4_moe_lite"}


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        (SMALL_V3, {"scoring_func": "softmax"}, "scoring_func"),
        (SMALL_V3, {"topk_method": "greedy"}, "topk_method"),
        (SMALL_V3, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (SMALL_V3, {"num_key_value_heads": 1}, "num_key_value_heads"),
        (SMALL_V3, {"head_dim": 64}, "head_dim"),
        (SMALL_V3, {"first_k_dense_replace": -1}, "first_k_dense_replace"),
        (SMALL_V3, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
        (SMALL_V3, {"num_nextn_predict_layers": 10**6}, "at most|At most|most"),
        (SMALL_V3, {"n_group": 5}, "groups"),
        (SMALL_V3, {"topk_group": 9}, "groups"),
        (SMALL_V3, {"kv_lora_rank": 0}, "kv_lora_rank"),
        (SMALL_V3, {"qk_rope_head_dim": 7}, "turn pairs"),
        (SMALL_V3, {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "pairs|partial"),
        (SMALL_V3, {"rope_parameters": {**YARN, "rope_type": "linear"}}, "mscale_all_dim"),
        (SMALL_V2, {"norm_topk_prob": True}, "norm_topk_prob"),
        (SMALL_V2, {"scoring_func": "sigmoid"}, "scoring_func"),
        (SMALL_V2, {"topk_method": "noaux_tc"}, "topk_method"),
        (LITE, {"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        (LITE, {"mlp_layer_types": ["dense", "wide", "sparse"]}, "mlp_layer_types"),
        (GLM, {"partial_rotary_factor": 0.0}, "partial_rotary_factor"),
    ],
)
@pytest.mark.filterwarnings("ignore::openbook.errors.OpenbookWarning")
def test_unknown_values_of_keys_that_compute_fail(config: dict[str, Any], change: dict[str, Any], match: str) -> None:
    read(config)
    with pytest.raises(ConfigError, match=match):
        read({**config, **change})


@torch.no_grad()
def test_bare_models_and_classifiers(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(5)
    ids = torch.randint(3, 100, (2, 9))
    values = {**SMALL, "rope_parameters": dict(SMALL["rope_parameters"]), "pad_token_id": 0}
    config = transformers.DeepseekV3Config(**values, num_labels=4)
    config._experts_implementation = "eager"
    base = transformers.DeepseekV3Model(config).float().eval()
    base.save_pretrained(tmp_path / "base")
    assert torch.allclose(load(tmp_path / "base").encode(ids), base(ids).last_hidden_state, atol=1e-5)
    judge = transformers.DeepseekV3ForSequenceClassification(config).float().eval()
    judge.save_pretrained(tmp_path / "judge")
    assert torch.allclose(load(tmp_path / "judge")(ids), judge(ids).logits, atol=1e-5)


def test_latent_attention_without_feed_forward_layers_is_saved_as_a_spec(tmp_path: Path) -> None:
    """No family of the line can say it, and none stumbles over it."""
    layer = spec.LatentAttention(heads=2, kv_rank=4, nope_dim=4, value_dim=4, rope=spec.Rope(dim=2))
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=spec.Norm()),))
    stack = spec.Stack(dim=8, blocks=(block,), final_norm=spec.Norm())
    model = make(spec.Model(embed=spec.Embed(vocab=9, dim=8), stack=stack, heads=(spec.Language(),)), seed=0)
    with pytest.warns(OpenbookWarning, match="No published family"):
        save(model, tmp_path)
    assert load(tmp_path).spec == model.spec
