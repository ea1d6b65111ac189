"""From a recipe to a DeepSeek-V3 of a few thousand parameters that also predicts ahead: trained, exported, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openbook.config import load
from openbook.models.load import load as load_model
from openbook.train.metrics import read_journal
from openbook.train.pretrain import pretrain
from openbook.train.recipe import Recipe

RECIPE = """
out = "unset"
[data]
text = ["{text}"]
block = 32
held_out = 0.1
held_out_tokens = 500
[tokenizer]
vocab = 400
[model]
family = "deepseek_v3"
dim = 32
layers = 2
heads = 4
hidden = 48
tied = false
[model.more]
q_lora_rank = 12
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 8
num_experts_per_tok = 2
moe_intermediate_size = 24
n_group = 2
topk_group = 1
first_k_dense_replace = 1
num_nextn_predict_layers = 1
[experts]
correction = 0.01
[train]
steps = 6
rows = 4
compile = "off"
dtype = "float32"
threads = 1
prompt = ""
[optimizer]
lr = 0.01
"""


@pytest.mark.slow
def test_a_recipe_becomes_a_model_that_predicts_ahead(tmp_path: Path, project: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(text=project / "tests/data/slices/stories.jsonl"))
    out = pretrain(load(Recipe, path, ["--out", str(tmp_path / "run")]), watchers=[])
    steps = [record for record in read_journal(out / "metrics.jsonl") if record["kind"] == "step"]
    assert steps[-1]["ahead 1"] < steps[0]["ahead 1"]
    tensors = load_file(out / "model.safetensors")
    assert "model.layers.2.eh_proj.weight" in tensors
    correction = tensors["model.layers.2.mlp.gate.e_score_correction_bias"]
    assert correction.abs().max() > 0  # experts of what predicts ahead are balanced too
    model = load_model(out)
    assert model.spec.ahead is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, experts_implementation="eager")
    ids = torch.arange(5, 20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
