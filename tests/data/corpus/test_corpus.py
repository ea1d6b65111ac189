"""A corpus from a recipe: what goes and is reported, interruption, repetition, processes, damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from openbook import config
from openbook.cli import main
from openbook.data.corpus import run
from openbook.data.corpus.executor import Here, Processes
from openbook.data.corpus.recipe import Corpus
from openbook.data.corpus.run import Told, build
from openbook.data.shards import Shards
from openbook.errors import ConfigError, DataError, OpenbookError
from tests.data.corpus.dirt import QUESTION, prose, recipe

pytest.importorskip("ftfy")
pytest.importorskip("py3langid")


def report_of(folder: Path) -> dict[str, Any]:
    """The report, without what differs from run to run."""
    tree: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {key: value for key, value in tree.items() if key not in ("seconds", "workers")}


def contents(folder: Path) -> dict[str, bytes]:
    """All files that must be the same whoever made them."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    kept = {name: path.read_bytes() for name, path in found.items() if path.name not in ("report.json", "report.html")}
    for name, content in kept.items():
        if name.endswith("manifest.json"):
            manifest = json.loads(content)
            for source in manifest["sources"]:
                source["path"] = source["modified"] = None
            kept[name] = json.dumps(manifest).encode()
    return kept


def removed(report: dict[str, Any], source: str, step: str) -> int:
    tally = report["ledger"][source].get(step, {"removed": {}})
    return sum(kind["documents"] for kind in tally["removed"].values())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dirty corpus, made once."""
    return build(recipe(tmp_path_factory.mktemp("corpus")), executor=Here())


def texts(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted((folder / "text").glob("*/*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def test_every_planted_fault_is_found(made: Path) -> None:
    report, kept = report_of(made), texts(made)
    titles = {record["meta"].get("title") for record in kept}
    assert "a copy" not in titles
    assert "nearly a copy" not in titles
    assert "spam" not in titles
    assert removed(report, "pages", "equal documents") == 1
    assert removed(report, "pages", "near duplicates") == 1
    assert removed(report, "pages", "rules") == 1
    (quoting,) = (record["text"] for record in kept if record["meta"].get("title") == "quotes a paragraph")
    assert quoting.strip() == prose(40), "the paragraph that stands in another document is gone, and nothing else"
    (mended,) = (record["text"] for record in kept if record["meta"].get("title") == "decoded wrongly")
    assert "été" in mended
    assert "Ã" not in mended
    (cut,) = (record["text"] for record in kept if record["meta"].get("title") == "holds a question")
    assert QUESTION not in cut
    assert report["contamination"]["sets"]["quiz"]["dirty"] == 1
    assert report["bad"]["count"] == 2
    assert {one["line"] for one in report["bad"]["listed"]} == {11, 12}


def test_what_was_whole_is_untouched(made: Path) -> None:
    kept = {record["text"] for record in texts(made)}
    assert {prose(n) for n in range(30)} <= kept
    assert {prose(n).strip() for n in range(50, 60)} <= {text.strip() for text in kept}


def test_tokens_are_those_of_the_kept_text(made: Path) -> None:
    report = report_of(made)
    for name in ("pages", "books"):
        shards = Shards.open(made / "shards" / name)
        assert shards.tokens == report["sources"][name]["tokens"]
        assert shards.documents == report["sources"][name]["left"]["documents"]
        assert shards.bytes == sum(len(r["text"].encode()) for r in texts(made) if r["source"] == name)
    assert report["tokens"] == sum(source["tokens"] for source in report["sources"].values())


def test_counts_add_up(made: Path) -> None:
    """What came to a step is what came to the one before, less what that one removed."""
    for source, steps in report_of(made)["ledger"].items():
        names = list(steps)
        for before, after in pairwise(names):
            came = steps[before]["documents"] - removed({"ledger": {source: steps}}, source, before)
            assert steps[after]["documents"] == came, (source, before, after)


@pytest.mark.slow
def test_processes_change_nothing(made: Path, tmp_path: Path) -> None:
    again = config.from_tree(
        Corpus, config.to_tree(recipe(made.parent)) | {"out": str(tmp_path / "out")}, source="the test"
    )
    build(again, executor=Processes(2))
    mine, theirs = contents(made), contents(tmp_path / "out")
    for name in ("card.md", "recipe.toml", "training.toml", "plan.json"):  # they name the folder, or when it was made
        mine.pop(name), theirs.pop(name)
    assert mine == theirs


def test_the_same_again_is_left_alone(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert build(recipe(made.parent), executor=Here()) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_another_recipe_needs_overwrite(made: Path) -> None:
    with pytest.raises(DataError, match="another recipe"):
        build(recipe(made.parent, tokens={"vocab": 500}), executor=Here())


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a corpus"):
        build(wanted, executor=Here(), overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("stage", ["cleaning", "comparing", "writing", "training the tokenizer", "checksums"])
def test_stopped_anywhere_it_goes_on(made: Path, tmp_path: Path, stage: str) -> None:
    class Stop(Exception):
        pass

    def stop(told: Told) -> None:
        if told.stage == stage:
            raise Stop

    wanted = recipe(tmp_path)
    with pytest.raises(Stop):
        build(wanted, executor=Here(), progress=stop)
    assert not (tmp_path / "out").exists(), "the target is whole or absent"
    build(wanted, executor=Here())
    mine, theirs = contents(made), contents(tmp_path / "out")
    assert {name for name in mine if name.startswith(("text", "shards", "tokenizer"))} == {
        name for name in theirs if name.startswith(("text", "shards", "tokenizer"))
    }
    for name in mine:
        if name.startswith("shards") and name.endswith(".bin"):
            assert mine[name] == theirs[name], name


@pytest.mark.slow
def test_killed_it_goes_on_and_leaves_nobody_behind(made: Path, tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    file = tmp_path / "recipe.toml"
    config.save(wanted, file)
    command = [sys.executable, "-m", "openbook", "data", "prepare", str(file), "--processes", "2"]
    for seconds in (1.0, 1.6, 2.4):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while _group(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _group(process.pid), "workers end with the process that started them"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mine, theirs = contents(made), contents(tmp_path / "out")
    for name in mine:
        if name.startswith("shards") and name.endswith(".bin"):
            assert mine[name] == theirs[name], name


def _group(leader: int) -> bool:
    """Whether a process of the group is alive."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_full_disk_is_said_and_loses_nothing(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = True
    whole = run.write.write_part

    def part(job: run.write.Job) -> int:
        if full and job.part.number == 1:
            raise OSError(28, "No space left on device")
        return whole(job)

    monkeypatch.setattr(run.write, "write_part", part)
    with pytest.raises(OpenbookError, match="disk is full"):
        build(recipe(tmp_path), executor=Here())
    full = False
    build(recipe(tmp_path), executor=Here())
    assert [r["text"] for r in texts(tmp_path / "out")] == [r["text"] for r in texts(made)]


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Nothing is left"):
        build(recipe(tmp_path, cleaning={"language": {"keep": ["ja"]}}), executor=Here())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": []}, "at least one"),
        ({"sources": [{"name": "../up", "paths": ["x"]}]}, "folder too"),
        ({"sources": [{"name": "a", "paths": ["x"]}, {"name": "a", "paths": ["y"]}]}, "Two sources"),
        ({"sources": [{"name": "a", "paths": ["x"], "skip": ["rulez"]}]}, "rules"),
        ({"sources": [{"name": "a", "paths": ["x"], "wieght": 1}]}, "weight"),
        ({"cleaning": {"languages": {}}}, "language"),
    ],
)
def test_wrong_recipes_name_the_place(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(tmp_path, **changes)


def test_a_file_in_two_sources_is_refused(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    same = str(tmp_path / "text" / "books.txt")
    with pytest.raises(DataError, match="two sources"):
        build(recipe(tmp_path, sources=[{"name": "a", "paths": [same]}, {"name": "b", "paths": [same]}]))
    assert wanted


def test_the_page_shows_what_happened_and_runs_nothing(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "buy now buy now" in page
    assert "near duplicates" in page
    card = (made / "card.md").read_text(encoding="utf-8")
    assert "| pages | CC0 |" in card


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    evil = "<script>alert(1)</script></pre>" * 60
    (text / "evil.jsonl").write_text(json.dumps({"text": evil}) + "\n" + json.dumps({"text": prose(1)}) + "\n")
    build(
        recipe(tmp_path, sources=[{"name": "a", "paths": [str(text)]}], contamination={}, tokens="None"),
        executor=Here(),
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script" not in page


def test_inspect_reads_what_prepare_wrote(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(made), "--sample", "2"]) == 0
    shown = capsys.readouterr().out
    assert "near duplicates" in shown
    assert shown.count("── ") == 2
    assert main(["data", "inspect", str(made / "shards" / "pages"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == report_of(made)["sources"]["pages"]["left"]["documents"]
    assert main(["data", "inspect", str(made.parent / "text" / "pages.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["columns"] == {"title": {"str": found["documents"]}}
    assert len(found["bad"]) == 2
