"""A recipe that mixes sources: what is trained on, measured and written down; what is refused before work starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.config import load, to_toml
from openbook.data.mixture import Mixture
from openbook.data.prepare import prepare
from openbook.errors import ConfigError, DataError
from openbook.text.tokenizer import Tokenizer
from openbook.train.pretrain import pretrain
from openbook.train.reading import changes, reader
from openbook.train.recipe import Recipe, TrainPart, identity
from tests.data.tiny import write_jsonl
from tests.train.test_pretrain import RECIPE, Silent

MIXED = """
[[data.sources]]
path = "{stories}"
weight = 3
[[data.sources]]
name = "sums"
path = "{sums}"
weight = 1
epochs = 1.5
[data.schedule]
shape = "linear"
[[data.schedule.changes]]
at = 0.5
weights = {{stories = 1, sums = 1}}
"""


@pytest.fixture
def mixed(tmp_path: Path, project: Path) -> Path:
    sums = write_jsonl(tmp_path / "of-sums.jsonl", [f"{n} and {n + 1} are {2 * n + 1}. " * 9 for n in range(60)])
    text = RECIPE.replace('text = ["{text}"]\n', "").replace(
        "[tokenizer]", MIXED.format(stories=project / "tests/data/slices/stories.jsonl", sums=sums) + "[tokenizer]"
    )
    path = tmp_path / "mixed.toml"
    path.write_text(text)
    return path


def read(path: Path, *words: str, out: str = "run") -> Recipe:
    return load(Recipe, path, ["--out", str(path.parent / out), *words])


@pytest.mark.slow
def test_a_mixture_is_trained_and_each_source_measured(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read(mixed, "--train.prompt", "")
    path = mixed.parent / "again.toml"
    path.write_text(to_toml(recipe))
    assert load(Recipe, path) == recipe
    watcher = Silent()
    out = pretrain(recipe, watchers=[watcher])
    held = next(r for r in watcher.records if r["kind"] == "heldout")
    assert held["bits_per_byte sums"] > 0
    assert min(held["loss stories"], held["loss sums"]) < held["loss"] < max(held["loss stories"], held["loss sums"])
    found = json.loads((out / "reading.json").read_text())
    assert found["rows"] == 48
    assert set(found["packing"]["sums"]) == {"stream", "best-fit"}
    assert "epochs of stories" in capsys.readouterr().err
    assert (out / "text" / "sums" / "manifest.json").exists()
    again = pretrain(read(mixed, "--train.prompt", "", out="other"), watchers=[])
    one, two = ((folder / "metrics.jsonl").read_text() for folder in (out, again))
    assert [json.loads(a)["loss"] for a in one.splitlines()] == [json.loads(b)["loss"] for b in two.splitlines()]


def test_shares_and_changes_are_those_of_the_recipe(mixed: Path, tmp_path: Path) -> None:
    recipe = read(mixed)
    assert [change.row for change in changes(recipe)] == [24]
    tokenizer = Tokenizer.train(["some text"], 300)
    found = {}
    for part in recipe.data.sources:
        found[part.called] = prepare(part.path, tokenizer, tmp_path / "shards" / part.called, held_out=0.1)
    rows = reader(recipe, found, 0)
    assert isinstance(rows, Mixture)
    assert rows.shares == {"stories": 0.75, "sums": 0.25}
    turns, _ = rows.turns(24, 40)
    assert abs(int(turns.sum()) - 20) <= 1
    with pytest.raises(ConfigError, match=r"give `train.steps`"):
        changes(read(mixed, "--train.steps", "None", "--train.minutes", "1"))


@pytest.mark.slow
def test_prepared_text_needs_its_tokenizer(mixed: Path, tmp_path: Path, project: Path) -> None:
    source = project / "tests/data/slices/stories.jsonl"
    for name, words in (("one", "a few words " * 9), ("two", "some other text " * 9)):
        tokenizer = Tokenizer.train([words], 300)
        tokenizer.save(tmp_path / name)
    prepare(source, tokenizer, tmp_path / "prepared", held_out=0.1)
    mixed.write_text(
        mixed.read_text()
        .replace(str(source), str(tmp_path / "prepared"))
        .replace("weight = 3", 'weight = 3\nname = "stories"')
    )
    with pytest.raises(ConfigError, match=r"is prepared text.*`tokenizer.path`"):
        pretrain(read(mixed), watchers=[])
    with pytest.raises(DataError, match="another tokenizer"):
        pretrain(read(mixed, "--tokenizer.path", str(tmp_path / "one")), watchers=[])
    out = pretrain(read(mixed, "--tokenizer.path", str(tmp_path / "two"), "--train.prompt", ""), watchers=[])
    assert not (out / "text" / "stories").exists()


def test_what_is_refused(mixed: Path) -> None:
    text = mixed.read_text()
    for old, new, says in (
        ('name = "sums"', 'name = "stories"', "'stories' comes twice"),
        ('name = "sums"', 'name = "a b"', "is no name"),
        ("sums = 1}", "sume = 1}", "Did you mean 'sums'"),
        ("at = 0.5", "at = -1", "got -1"),
        ("weight = 1\n", "", "weight, or none"),
        ("[data]", '[data]\ntext = ["x.txt"]', "Say what to read"),
        ("epochs = 1.5", "epoch = 1.5", "Unknown key 'epoch'"),
    ):
        mixed.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=says):
            read(mixed)
    mixed.write_text(RECIPE.replace('text = ["{text}"]\n', ""))
    with pytest.raises(ConfigError, match="Say what to read"):
        read(mixed)
    mixed.write_text(
        RECIPE.format(text="x") + "[data.schedule]\nshape = 'linear'\n[[data.schedule.changes]]\nat=1\nweights={a=1}"
    )
    with pytest.raises(ConfigError, match="names a source 'a'"):
        read(mixed)
    mixed.write_text(text.replace("weight = 3", "weight = 3\nepochs = 0.01").replace("epochs = 1.5", "epochs = 0.01"))
    with pytest.raises(DataError, match="All sources have had their epochs"):
        pretrain(read(mixed), watchers=[])


def test_recipes_from_before_are_the_same_run(tmp_path: Path) -> None:
    """Their checkpoints are theirs: what identifies a run of one text has not changed."""
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(text="x"))
    data = identity(load(Recipe, path))["data"]
    assert set(data) == {"text", "field", "held_out", "held_out_tokens", "block", "packing", "document_mask"}


def test_rows_of_a_run() -> None:
    assert TrainPart(steps=10, rows=4).rows_of(10) == 40
    assert TrainPart(steps=10, rows=4, ramp=((0, 2), (3, 5), (20, 9))).rows_of(10) == 3 * 2 + 7 * 5
    assert TrainPart(steps=10, rows=4, ramp=((3, 5),)).rows_of(2) == 8
