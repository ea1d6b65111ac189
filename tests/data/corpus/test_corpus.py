"""A corpus from a recipe: what goes and is reported, interruption, repetition, processes, damage."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
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
from openbook.data import documents
from openbook.data.corpus import run
from openbook.data.corpus.executor import Here, Processes
from openbook.data.corpus.recipe import Corpus
from openbook.data.corpus.run import Told, build
from openbook.data.shards import Shards
from openbook.errors import ConfigError, DataError, OpenbookError, TokenizerError
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


def test_a_disk_that_fills_while_comparing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped file without room behind it would end the process with a signal."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OpenbookError, match=r"signatures\.bin.*disk is full"):
        build(recipe(tmp_path), executor=Here())


@pytest.mark.parametrize("gone", [["clean"], ["clean", "choice"], ["clean", "choice", "evaluation", "seconds.json"]])
def test_killed_while_it_is_tidied_up_it_is_there(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: list[str]
) -> None:
    """Between the last byte and the name of the folder lies the removal of everything else, which may take long."""

    class Killed(BaseException):
        pass

    def killed(*_: Path) -> None:
        for name in gone:
            for file in sorted((tmp_path / ".out.part" / name).glob("*"))[1:]:
                file.unlink() if file.is_file() else None
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "_give", killed)
        with pytest.raises(Killed):
            build(recipe(tmp_path), executor=Here())
    build(recipe(tmp_path), executor=Here())
    assert [r["text"] for r in texts(tmp_path / "out")] == [r["text"] for r in texts(made)]
    assert report_of(tmp_path / "out")["left"] == report_of(made)["left"]


def test_one_process_may_make_corpora_in_one_place(made: Path, tmp_path: Path) -> None:
    """What a process keeps of a corpus (an index of evaluation sets) is not taken for the next one's."""
    plain = report_of(build(recipe(tmp_path, contamination={}), executor=Here()))
    assert plain["contamination"] is None
    again = report_of(build(recipe(tmp_path), executor=Here(), overwrite=True))
    assert again["contamination"] == report_of(made)["contamination"] | {
        "samples": again["contamination"]["samples"]
    }  # which name the files
    assert again["left"] == report_of(made)["left"]


def test_files_written_to_meanwhile_are_said(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    paths = [text / name for name in ("grows.jsonl", "same.jsonl")]
    for number, path in enumerate(paths):
        path.write_text(json.dumps({"text": prose(number)}) + "\n")
    before = paths[0].read_bytes()

    def more(told: Told) -> None:
        if told.stage == "writing" and told.done == 0:
            paths[0].write_bytes(before + b'{"text": "more"}\n')

    wanted = recipe(tmp_path, sources=[{"name": "a", "paths": [str(text)]}], contamination={}, tokens="None")
    report = report_of(build(wanted, executor=Here(), progress=more))
    grown, same = report["files"]
    assert grown["sha256"] == hashlib.sha256(before).hexdigest(), "the checksum is that of what was read"
    assert grown["bytes"] == len(before)
    assert "changed" not in same
    assert report["bad"]["count"] == 1
    assert "written to" in report["bad"]["listed"][0]["why"]


def test_a_document_of_any_length_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text has a longer line in the cleaned text: what was let in at the beginning is let through."""
    monkeypatch.setattr(documents, "LONGEST_LINE", 100)
    report = report_of(build(recipe(tmp_path), executor=Here()))
    assert report["tokens"]


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Nothing is left.*language, another language: \d+"):
        build(recipe(tmp_path, cleaning={"language": {"keep": ["ja"]}}), executor=Here())
    (tmp_path / "text" / "pages.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no document could be read \(it is empty"):
        build(recipe(tmp_path, sources=[{"name": "a", "paths": [str(tmp_path / "text" / "pages.jsonl")]}]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": []}, "at least one"),
        ({"sources": [{"name": "../up", "paths": ["x"]}]}, "folder too"),
        ({"sources": [{"name": "a", "paths": ["x"]}, {"name": "a", "paths": ["y"]}]}, "Two sources"),
        ({"sources": [{"name": "a", "paths": ["x"], "skip": ["rulez"]}]}, "rules"),
        ({"sources": [{"name": "a", "paths": ["x"], "wieght": 1}]}, "weight"),
        ({"cleaning": {"languages": {}}}, "language"),
        ({"sources": [{"name": "a", "paths": []}]}, "'a' has no `paths`"),
        ({"sources": [{"name": "a", "paths": ["x"], "weight": math.inf}]}, "weight"),
        ({"tokens": {"held_out": 0.9}}, "held_out"),
        ({"tokens": {"shard_tokens": 0}}, "shard_tokens"),
        ({"tokens": {"megabytes": 0}}, "megabytes"),
        ({"contamination": {"words": 5}}, "5 `words`"),
        ({"contamination": {"margin": -1}}, "margin"),
        ({"duplicates": {"paragraphs": 0}}, "paragraphs"),
    ],
)
def test_wrong_recipes_name_the_place(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(tmp_path, **changes)


@pytest.mark.parametrize(("tokens", "says"), [({"vocab": 100}, "too small"), ({"tokenizer": "text"}, "tokenizer.json")])
def test_a_tokenizer_that_cannot_be_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokenizerError, match=says):
        build(recipe(tmp_path, tokens=tokens), executor=Here())
    assert not (tmp_path / ".out.part").exists()


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


def test_what_is_short_beside_a_repeated_paragraph_stays(tmp_path: Path) -> None:
    """Between passages what is left has a least length; between paragraphs it has none, also with both looked for."""
    notice = "\n\n".join(prose(n).split("\n\n")[0] for n in (1, 2))
    first, second = notice.split("\n\n")
    whole = [f"{prose(20)}\n\n{notice}", f"{prose(21)}\n\n{first}\n\nYes.\n\n{second}\n\n{prose(22)}"]
    text = tmp_path / "text" / "pages.jsonl"
    text.parent.mkdir()
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in whole), encoding="utf-8")
    duplicates = {"near": "None", "overlap": {"words": 500}}
    sources = [{"name": "pages", "paths": [str(text)]}]
    out = build(
        recipe(tmp_path, sources=sources, duplicates=duplicates, contamination={}, tokens="None"), executor=Here()
    )
    assert texts(out)[1]["text"] == f"{prose(21).strip()}\n\nYes.\n\n{prose(22)}"


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


def test_what_lies_in_a_folder_and_cannot_be_read_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "good.jsonl").write_text(json.dumps({"text": prose(1)}))
    (text / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    (text / "same.jsonl").symlink_to(text / "good.jsonl")
    os.mkfifo(text / "pipe.txt")
    folder = build(
        recipe(tmp_path, sources=[{"name": "a", "paths": [str(text)]}], contamination={}, tokens="None"),
        executor=Here(),
    )
    report = report_of(folder)
    assert report["left"]["documents"] == 1
    assert report["bad"]["count"] == 2
    listed = [Path(one["path"]).name for one in report["bad"]["listed"]]
    assert sorted(listed) == ["lost.jsonl", "pipe.txt", "same.jsonl"]
    assert main(["data", "inspect", str(text)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("could not be read") == 2
    assert "to know: " in shown


def test_a_card_holds_no_markup_of_others(tmp_path: Path) -> None:
    evil = "</td><img src=x>|[a](javascript:b)\\| ``` `"
    text = tmp_path / "text"
    text.mkdir()
    (text / "a`b|c.jsonl").write_text(json.dumps({"text": prose(1)}))
    sources = [{"name": "a", "paths": [str(text)], "licence": evil, "origin": "```\n# head"}]
    folder = build(recipe(tmp_path, sources=sources, contamination={}, tokens="None"), executor=Here())
    prose_of_card, fence, code = (folder / "card.md").read_text(encoding="utf-8").partition("````toml\n")
    assert fence
    assert code.endswith("\n````\n")
    assert code.count("````") == 1
    table = prose_of_card.partition("## Sources")[2]
    assert "<img" not in table
    assert "\\[a\\](javascript" in table
    (row,) = (line for line in table.splitlines() if line.startswith("| a |"))
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 8, "a bar from outside parts no cells"


def test_inspect_takes_other_reports_for_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "documents.jsonl").write_text(json.dumps({"text": prose(1)}))
    (tmp_path / "report.json").write_text('{"documents": 1}')
    assert main(["data", "inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 1


@pytest.mark.parametrize("wrong", [["--block", "0"], ["--sample", "-1"]])
def test_inspect_of_nothing_is_wrong_usage(made: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(made / "shards" / "pages"), *wrong]) == 2
    assert "or more" in capsys.readouterr().err


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
