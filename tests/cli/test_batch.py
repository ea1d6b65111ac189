"""`openbook generate --batch`: every line is answered once, runs go on, what is wrong is said before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.text.kinds import SENTENCES

from openbook import cli
from openbook.cli.batch import finished
from openbook.models.load import save
from openbook.models.make import make, spec_of
from openbook.text import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batch")
    tokenizer = Tokenizer.train(SENTENCES * 3, 300)
    sizes = {"vocab": tokenizer.vocab, "dim": 16, "layers": 1, "heads": 2, "hidden": 32, "context": 64}
    save(make(spec_of("llama", sizes), 0), path)
    tokenizer.save(path)
    return path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], folder: Path) -> Any:
    def run(*words: object) -> tuple[int, str, str]:
        usual = ["generate", folder, "--max-tokens", 6, "--temperature", 0]
        status = cli.main([str(word) for word in [*usual, *words]])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def written(path: Path, lines: list[object]) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x, ensure_ascii=False)) + "\n" for x in lines))
    return path


def test_every_line_once_and_the_rest_later(say: Any, tmp_path: Path) -> None:
    asked: list[object] = [
        {"prompt": "The fox\u2028sat"},
        {"messages": [{"role": "user", "content": "A"}], "id": "x"},
        {"prompt": "A", "n": 2, "temperature": 1.0, "seed": 1, "max_tokens": 3},
    ]
    file, out = written(tmp_path / "in.jsonl", asked), tmp_path / "deep" / "out.jsonl"
    assert say("--batch", file, "--out", out)[0] == 0
    lines = out.read_text().split("\n")[:-1]
    records = {record["index"]: record for record in map(json.loads, lines)}
    assert sorted(records) == [0, 1, 2]
    assert len(lines) == 3
    assert records[1]["id"] == "x"
    assert len(records[2]["outputs"]) == 2
    assert records[0]["outputs"][0]["completion_tokens"] == 6
    out.write_text(lines[0] + "\n" + lines[1][:20])  # killed within a line
    assert say("--batch", file, "--out", out)[0] == 0
    again = {record["index"]: record for record in map(json.loads, out.read_text().split("\n")[:-1])}
    for index, record in again.items():  # how much of a prompt was cached may differ, what is said may not
        assert [o["text"] for o in record["outputs"]] == [o["text"] for o in records[index]["outputs"]]
    assert sorted(again) == [0, 1, 2]
    status, said, _ = say("--batch", file)
    assert status == 0
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2, is not JSON"),
        ("3", "line 2: a line is a JSON object"),
        ({"promt": "A"}, "line 2: unknown key `promt`"),
        ({"prompt": "A", "max_tokens": "many"}, "line 2: .*max_tokens"),
        ({"prompt": 3}, "line 2: `prompt` must be a text"),
        ({"prompt": "A", "adapter": "poems"}, "line 2: There is no adapter 'poems'"),
        ({"prompt": "A", "choice": "yes"}, "line 2: `choice` must be a sequence"),
        ({"prompt": "A", "regex": "a", "choice": ["b"]}, "line 2: give one of"),
        ({"prompt": "word " * 200}, "line 2: .*context"),
    ],
)
def test_a_wrong_line_is_said_before_any_work(say: Any, tmp_path: Path, line: object, complaint: str) -> None:
    import re

    file, out = written(tmp_path / "in.jsonl", [{"prompt": "A"}, line]), tmp_path / "out.jsonl"
    status, _, said = say("--batch", file, "--out", out)
    assert status == 1
    assert re.search(complaint, " ".join(said.split())), said
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--batch", "FILE", "--prompt", "A"),
        ("--out", "x", "--prompt", "A"),
        ("--batch", "nowhere.jsonl"),
        ("--batch", "FILE", "--json"),
        ("--batch", "FILE", "--adapter", "poems"),
        ("--batch", "FILE", "--memory", "much"),
        ("--batch", "FILE", "--speculation", "magic"),
        ("--prompt", "A", "--quantize", "int9"),
        ("--prompt", "A", "--regex", "a", "--choice", "b"),
    ],
)
def test_wrong_usage_is_2(say: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    file = written(tmp_path / "in.jsonl", [{"prompt": "A"}])
    assert say(*(str(file) if word == "FILE" else word for word in words))[0] == 2


def test_another_file_is_not_written_over(say: Any, tmp_path: Path) -> None:
    file, out = written(tmp_path / "in.jsonl", [{"prompt": "A"}]), tmp_path / "notes.txt"
    out.write_text("my notes\n")
    assert say("--batch", file, "--out", out)[0] == 2
    assert out.read_text() == "my notes\n"


def test_a_full_disk_is_said(say: Any, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    status, _, said = say("--batch", written(tmp_path / "in.jsonl", [{"prompt": "A"}]), "--out", "/dev/full")
    assert status == 1
    assert "No space left" in said


def test_grammars_and_int8_of_a_single_prompt(say: Any) -> None:
    pytest.importorskip("llguidance")
    status, said, _ = say("--prompt", "A", "--choice", "yes", "--choice", "no", "--quantize", "int8")
    assert status == 0
    assert said.strip() in ("Ayes", "Ano")


def test_blank_lines_are_no_requests_and_it_still_goes_on(say: Any, tmp_path: Path) -> None:
    file, out = written(tmp_path / "in.jsonl", [{"prompt": "A"}, "", "", {"prompt": "The fox"}, ""]), tmp_path / "out"
    assert say("--batch", file, "--out", out)[0] == 0
    lines = out.read_text().split("\n")
    assert sorted(json.loads(line)["index"] for line in lines[:2]) == [0, 3]
    out.write_text(next(line for line in lines[:2] if json.loads(line)["index"] == 3) + "\n")
    assert say("--batch", file, "--out", out)[0] == 0
    assert sorted(json.loads(line)["index"] for line in out.read_text().split("\n")[:-1]) == [0, 3]


@pytest.mark.parametrize(
    ("line", "said"), [('{"prompt":"A","id":"\\ud800"}', "half a character"), ("[" * 100_000, "nested too deeply")]
)
def test_lines_that_cannot_be_read_or_written_are_said_first(say: Any, tmp_path: Path, line: str, said: str) -> None:
    status, _, error = say(
        "--batch", written(tmp_path / "in.jsonl", [{"prompt": "A"}, line]), "--out", tmp_path / "out"
    )
    assert status == 1
    assert "line 2" in error
    assert said in error


def test_a_line_that_failed_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = [{"index": i, "outputs": [{"finish": finish}]} for i, finish in enumerate(["stop", "error", "length"])]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert finished(out, {0, 1, 2}) == {0, 2}
    assert [json.loads(raw)["index"] for raw in out.read_text(encoding="utf-8").splitlines()] == [0, 2]
