"""A model of one's own, said as a spec in a recipe: `openbook pretrain`, `describe` and `generate` know it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from openbook.cli import main
from openbook.config import load, read_toml, to_toml
from openbook.errors import ConfigError
from openbook.models.describe import describe
from openbook.models.load import load as load_model
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.plain import from_plain, to_plain
from openbook.train.learning import check_model
from openbook.train.metrics import read_journal
from openbook.train.pretrain import pretrain
from openbook.train.recipe import Recipe
from tests.nn.recurrent import ALL, bilm

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
family = "openbook"
[model.spec]
{spec}
[train]
steps = 8
rows = 4
compile = "off"
dtype = "float32"
threads = 1
[optimizer]
lr = 0.01
"""
LSTM = """
embed = { dim = 20, dropout = 0.1 }
heads = [{ type = "Language", tied = true }]
[model.spec.stack]
dim = 20
[[model.spec.stack.blocks]]
repeat = 2
place = "plain"
dropout = 0.1
layer = { type = "Recurrent", cell = "lstm", hidden = 20 }
"""
BOTH = """
embed = { dim = 12, copies = 2 }
heads = [{ type = "Language", tied = true, directions = 2 }, { type = "Mix" }]
[model.spec.stack]
dim = 24
blocks = [{ place = "plain", layer = { type = "Recurrent", hidden = 12, direction = "apart" } }]
"""


@pytest.fixture
def recipe_file(tmp_path: Path, project: Path) -> Path:
    return write(tmp_path, project, LSTM)


def write(folder: Path, project: Path, model: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(text=project / "tests/data/slices/stories.jsonl", spec=model))
    return path


def read(path: Path, *words: str) -> Recipe:
    return load(Recipe, path, ["--out", str(path.parent / "run"), *words])


def test_a_recipe_of_a_spec_trains_describes_and_writes(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = pretrain(read(recipe_file), watchers=[])
    losses = [record["loss"] for record in read_journal(out / "metrics.jsonl") if record["kind"] == "step"]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    model = load_model(out)
    (block,) = set(model.spec.stack.blocks)
    assert block.branches[0].layer == spec.Recurrent(hidden=20)
    assert len(model.spec.stack.blocks) == 2
    assert model.spec.embed.dropout == 0.1
    told = describe(out)
    parameters = sum(p.numel() for p in model.parameters())
    assert told.total == parameters == model.spec.embed.vocab * 20 + 2 * (2 * 80 * 20 + 2 * 80)
    assert told.parts["recurrent"] == 2 * (2 * 80 * 20 + 2 * 80)
    assert told.work.products == 2 * (2 * 2 * 80 * 20 + model.spec.embed.vocab * 20)
    assert told.state.sequence == 2 * 2 * 20
    assert "lstm of 20" in told.page()
    capsys.readouterr()
    assert main(["generate", str(out), "--prompt", "Once", "--max-tokens", "4", "--temperature", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_the_recipe_that_is_kept_says_the_same(recipe_file: Path) -> None:
    recipe = read(recipe_file)
    again = recipe_file.with_name("again.toml")
    again.write_text(to_toml(recipe))
    assert load(Recipe, again) == recipe
    assert check_model(load(Recipe, again)) == check_model(recipe)


@pytest.mark.slow
def test_a_model_that_reads_both_ways_trains(tmp_path: Path, project: Path) -> None:
    out = pretrain(read(write(tmp_path, project, BOTH)), watchers=[])
    steps = [record for record in read_journal(out / "metrics.jsonl") if record["kind"] == "step"]
    assert steps[-1]["ahead"] < steps[0]["ahead"]
    assert steps[-1]["back"] < steps[0]["back"]
    assert load_model(out).encode(torch.tensor([[3, 4, 5]])).shape == (1, 3, 24)


def test_the_bundled_recipe_is_right(project: Path) -> None:
    tree = read_toml(project / "recipes/lstm.toml")
    model = check_model(load(Recipe, project / "recipes/lstm.toml"))
    assert tree["model"]["family"] == "openbook"
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(model).parameters())
    assert parameters == 2048 * 192 + 2 * (2 * 768 * 192 + 2 * 768)
    assert describe({"model_type": "openbook", "spec": to_plain(model)}).total == parameters


WRONG = [
    (LSTM.replace("hidden = 20", "hidden = 21"), "`dim` is 20"),
    (LSTM.replace("hidden = 20", "hiden = 20"), "hidden"),
    (LSTM.replace("repeat = 2", "repeat = 0"), "repeat"),
    (LSTM.replace('"Recurrent"', '"Recurent"'), "Recurrent"),
    (LSTM.replace("dim = 20, ", "dim = 20, vocab = 30, "), "vocab"),
    (LSTM.replace("[model.spec.stack]", "context = 8\n[model.spec.stack]"), "context"),
    (LSTM.replace('{ type = "Language", tied = true }', ""), "left to right"),
    (BOTH.replace(", directions = 2", "").replace("tied = true", "tied = false"), "left to right"),
]


@pytest.mark.parametrize(("model", "about"), WRONG, ids=[about for _, about in WRONG])
def test_a_wrong_spec_is_said_before_work_starts(model: str, about: str, tmp_path: Path, project: Path) -> None:
    with pytest.raises(ConfigError, match=about):
        check_model(read(write(tmp_path, project, model)))


FEW = ["--out", "x", "--data.text", "a", "--train.steps", "1"]


def test_a_family_needs_its_sizes_and_a_spec_says_them_itself(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"`model.dim` and `model.heads` must be given"):
        load(Recipe, None, [*FEW, "--model.family", "llama", "--model.layers", "2"])
    with pytest.raises(ConfigError, match=r"leave them out of \[model\]"):
        read(recipe_file, "--model.dim", "8")
    with pytest.raises(ConfigError, match=r"\[model.spec\]"):
        load(Recipe, None, [*FEW, "--model.family", "openbook"])


def test_short_forms_mean_the_long_ones() -> None:
    branch = {"layer": {"type": "Recurrent", "hidden": 4}, "place": "plain"}
    long = [{"repeat": 3, "of": {"type": "Block", "branches": [{"type": "Branch", **branch}]}}]
    for short in ([{"repeat": 3, **branch}], [{"repeat": 3, "branches": [branch]}], [branch] * 3):
        one, other = (from_plain({"dim": 4, "blocks": blocks}, spec.Stack) for blocks in (short, long))
        assert one == other
    for model in (*ALL.values(), bilm()):
        assert from_plain(json.loads(json.dumps(to_plain(model))), spec.Model) == model
