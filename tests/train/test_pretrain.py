"""From a recipe to a model folder: what comes out, what goes on after a kill, what is refused before work starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from openbook.config import load, to_toml
from openbook.errors import CheckpointError, ConfigError, DataError, OpenbookError, UsageError
from openbook.models.load import load as load_model
from openbook.text.tokenizer import Tokenizer
from openbook.train.metrics import read_journal
from openbook.train.pretrain import pretrain
from openbook.train.recipe import Recipe, TrainPart, identity

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
family = "llama"
dim = 32
layers = 2
heads = 4
kv_heads = 2
hidden = 48
tied = true
[train]
steps = 12
rows = 4
compile = "off"
dtype = "float32"
threads = 1
[optimizer]
lr = 0.01
"""


class Silent:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.closed = False

    def record(self, record: Any) -> None:
        self.records.append(dict(record))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recipe_file(tmp_path: Path, project: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(text=project / "tests/data/slices/stories.jsonl"))
    return path


def read(path: Path, *words: str, out: Path | None = None) -> Recipe:
    return load(Recipe, path, ["--out", str(out or path.parent / "run"), *words])


def test_what_comes_out_is_what_transformers_loads(recipe_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    watcher = Silent()
    out = pretrain(read(recipe_file), watchers=[watcher])
    assert watcher.closed
    assert [r["step"] for r in watcher.records if r["kind"] == "step"] == list(range(1, 13))
    assert next(r for r in watcher.records if r["kind"] == "heldout")["bits_per_byte"] > 0
    assert all(r["text"].startswith("Once upon a time") for r in watcher.records if r["kind"] == "sample")
    ours, tokenizer = load_model(out), Tokenizer.load(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "Once upon a time there was a dog."
    ids = tokenizer.encode(text)
    assert their_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, rtol=1e-5, atol=1e-5)
    assert theirs.config.eos_token_id == tokenizer.eos
    messages = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": " upon"}]
    templated = their_tokenizer.apply_chat_template(messages, return_dict=False)
    assert templated == tokenizer.chat(messages) == tokenizer.encode("Once upon", bos=True)
    assert (out / "curve.png").exists()
    assert load(Recipe, out / "recipe.toml") == read(recipe_file)


def test_dropout_is_of_training_alone(recipe_file: Path) -> None:
    words = ("--model.dropout", "0.5", "--train.steps", "2", "--train.prompt", "")
    out = pretrain(read(recipe_file, *words), watchers=[])
    plain = pretrain(read(recipe_file, *words[2:], out=recipe_file.parent / "plain"), watchers=[])
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert load_model(out).spec == load_model(plain).spec
    one, other = (read_journal(folder / "metrics.jsonl")[0]["loss"] for folder in (out, plain))
    assert one != other


def test_the_same_command_again_changes_nothing(recipe_file: Path) -> None:
    out = pretrain(read(recipe_file), watchers=[])
    before, lines = load_file(out / "model.safetensors"), read_journal(out / "metrics.jsonl")
    watcher = Silent()
    pretrain(read(recipe_file), watchers=[watcher])
    assert watcher.records == []
    assert all(torch.equal(before[n], t) for n, t in load_file(out / "model.safetensors").items())
    assert read_journal(out / "metrics.jsonl") == lines


PROGRAM = """
import sys
from pathlib import Path
from openbook.config import load
from openbook.errors import OpenbookError
from openbook.train import pretrain as room
from openbook.train.recipe import Recipe
room.Checkpoints.due = lambda self: True
try:
    room.pretrain(load(Recipe, Path(sys.argv[1]), sys.argv[2:]))
except OpenbookError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def begin(recipe: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(recipe), "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_any_stage_it_ends_as_if_nothing_had_happened(recipe_file: Path, tmp_path: Path) -> None:
    words = ("--train.steps", "40", "--optimizer.name", "muon", "--train.micro-rows", "3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert begin(recipe_file, whole, *words).wait(timeout=100) == 0
    for stage in ("tokenizer/tokenizer.json", "text", "metrics.jsonl"):
        process = begin(recipe_file, broken, *words)
        while process.poll() is None and not (broken / stage).exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = begin(recipe_file, broken, *words)
    wait_for(broken / "metrics.jsonl", 11, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command continues" in said
    assert begin(recipe_file, broken, *words).wait(timeout=100) == 0
    one, other = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    drop = ("seconds", "took")
    lines = [
        [{k: v for k, v in r.items() if k not in drop} for r in read_journal(f / "metrics.jsonl")]
        for f in (whole, broken)
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_minutes_become_steps_that_stay(recipe_file: Path) -> None:
    recipe = read(recipe_file, "--train.steps", "1000000", "--train.minutes", "0.15")
    watcher = Silent()
    out = pretrain(recipe, watchers=[watcher])
    kept = json.loads((out / "plan.json").read_text())
    last = [r for r in watcher.records if r["kind"] == "step"][-1]
    assert last["step"] == kept["steps"] >= 10
    assert last["seconds"] < 0.3 * 60
    pretrain(recipe, watchers=[])
    assert json.loads((out / "plan.json").read_text()) == kept


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("--data.text", "nowhere.txt"), DataError, "nowhere.txt"),
        (("--model.family", "lama"), ConfigError, "llama"),
        (("--model.family", "bert", "--model.kv-heads", "None"), ConfigError, "left to right"),
        (("--model.kv-heads", "3"), ConfigError, "kv_heads"),
        (("--model.context", "16"), ConfigError, "longer than `model.context`"),
        (("--data.block", "100000"), DataError, "smaller than one block"),
        (("--tokenizer.vocab", "100"), OpenbookError, "vocab"),
        (("--train.rows", "0"), ConfigError, "train.rows"),
        (("--model.dropout", "1.0"), ConfigError, "model.dropout"),
        (("--train.steps", "None"), ConfigError, "how long"),
        (("--optimizer.lr", "-1"), ConfigError, "optimizer.lr"),
        (("--optimizer.rl", "1"), UsageError, "optimizer.lr"),
        (("--train.dtype", "int4"), ConfigError, "int4"),
        (("--train.device", "tpu"), ConfigError, "tpu"),
        (("--train.ramp", "5", "4", "2", "8"), ConfigError, "train.rows"),
    ],
)
def test_mistakes_are_said_clearly(
    words: tuple[str, ...], error: type[Exception], said: str, recipe_file: Path
) -> None:
    with pytest.raises(error, match=said):
        pretrain(read(recipe_file, *words), watchers=[])
    assert not list((recipe_file.parent / "run").glob("checkpoints/step-*"))


def test_an_unknown_key_names_the_nearest(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("layers = 2", "layer = 2"))
    with pytest.raises(ConfigError, match="layers"):
        read(recipe_file)


def test_a_tokenizer_larger_than_the_model(recipe_file: Path, tmp_path: Path) -> None:
    Tokenizer.train(["once upon a time " * 50], 300).save(tmp_path / "tok")
    words = ("--tokenizer.path", str(tmp_path / "tok"), "--model.vocab")
    with pytest.raises(ConfigError, match=r"`model.vocab` is 200, but the tokenizer has \d+ ids"):
        pretrain(read(recipe_file, *words, "200"), watchers=[])
    out = pretrain(read(recipe_file, *words, "512"), watchers=[])
    assert load_model(out).spec.embed.vocab == 512
    assert Tokenizer.load(out).vocab < 512


def test_another_recipe_in_the_same_folder(recipe_file: Path) -> None:
    pretrain(read(recipe_file), watchers=[])
    with pytest.raises(CheckpointError, match=r"`train.rows` was 4, now 8"):
        pretrain(read(recipe_file, "--train.rows", "8"), watchers=[])
    pretrain(read(recipe_file, "--checkpoint.every", "99", "--train.prompt", "One day"), watchers=[])


def test_other_text_under_the_same_name(recipe_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. It was a good mat.\n\n" * 200)
    pretrain(read(recipe_file, "--data.text", str(text), "--data.block", "16"), watchers=[])
    text.write_text("The dog lay in the fog. It was a thick fog.\n\n" * 200)
    with pytest.raises(OpenbookError, match=r"another|otherwise"):
        pretrain(read(recipe_file, "--data.text", str(text), "--data.block", "16"), watchers=[])


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02\xff" * 100])
def test_empty_and_binary_text(content: bytes, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.txt"):
        pretrain(read(recipe_file, "--data.text", str(tmp_path / "x.txt")), watchers=[])


def test_a_folder_that_cannot_be_written(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OpenbookError, match=r"--out"):
        pretrain(read(recipe_file, out=tmp_path / "file" / "run"), watchers=[])
    if os.geteuid() != 0:  # nothing is read-only to root
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OpenbookError, match=r"Permission denied"):
            pretrain(read(recipe_file, out=tmp_path / "locked" / "run"), watchers=[])


def test_the_best_weights_are_exported_after_early_stopping(recipe_file: Path) -> None:
    words = (
        "--train.steps",
        "60",
        "--train.patience",
        "1",
        "--train.improvement",
        "50.0",
        "--train.heldout-every",
        "3",
    )
    watcher = Silent()
    out = pretrain(read(recipe_file, *words), watchers=[watcher])
    assert [r["step"] for r in watcher.records if r["kind"] == "heldout"] == [3, 6]
    best = load_file(out / "checkpoints" / "best" / "model.safetensors")
    assert torch.equal(load_model(out).embed.tokens.weight, best["embed.tokens.weight"])


def test_every_recipe_of_the_project_is_sound(project: Path) -> None:
    from openbook.train.pretrain import check_model

    found = sorted((project / "recipes").glob("*.toml"))
    assert project / "recipes" / "stories.toml" in found
    for path in found:
        recipe = load(Recipe, path)
        check_model(recipe)
        assert from_toml(to_toml(recipe)) == recipe


def from_toml(text: str) -> Recipe:
    import tomllib

    from openbook.config import from_tree

    return from_tree(Recipe, tomllib.loads(text), source="the test")


def test_a_step_without_schedule_or_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="minutes"):
        TrainPart(minutes=float("nan"))


EXPERTS = """
[experts]
balance = 0.0
z_loss = 0.001
capacity = 1.25
"""
SPARSE = """
[model.more]
num_local_experts = 4
num_experts_per_tok = 2
"""


@pytest.mark.slow
def test_a_recipe_trains_experts_and_a_plain_family_comes_out(recipe_file: Path) -> None:
    """What the recipe asks of experts is of training alone; what is measured of them stands in the journal."""
    said = recipe_file.read_text().replace('family = "llama"', 'family = "mixtral"')
    recipe_file.write_text(said + SPARSE + EXPERTS)
    out = pretrain(read(recipe_file), watchers=[])
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "mixtral"
    assert config["router_aux_loss_coef"] == 0.001
    steps = [record for record in read_journal(out / "metrics.jsonl") if record["kind"] == "step"]
    assert all({"least", "most", "entropy", "dropped"} == set(step["experts"]) for step in steps)
    assert all(step["router_z"] > 0 for step in steps)
    with pytest.raises(CheckpointError, match=r"experts\.capacity"):
        pretrain(read(recipe_file, "--experts.capacity", "2.0"), watchers=[])


@pytest.mark.slow
def test_a_text_in_several_cuts(recipe_file: Path) -> None:
    """Training goes through the copies; what is held out, and a run without them, stay as they were."""
    words = ["--data.dropout", "0.1", "--data.copies", "2"]
    recipe = read(recipe_file, *words, out=recipe_file.parent / "copies")
    out = pretrain(recipe, watchers=[Silent()])
    found = json.loads((out / "reading.json").read_text())
    assert sorted(found["epochs"]) == ["copy 1", "copy 2"]
    assert {path.name for path in out.glob("text*")} == {"text", "text-1", "text-2"}
    assert "copies" not in identity(read(recipe_file))["data"]
