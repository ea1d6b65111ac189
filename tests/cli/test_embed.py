"""`openbook embed`: vectors of texts on the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from openbook import cli
from openbook.generate.encode import Pooling, embed
from openbook.models.load import load, save
from openbook.models.make import make, spec_of
from openbook.text.tokenizer import Tokenizer

TEXTS = ["The cat sleeps.", "A dog came to the house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = Tokenizer.train(TEXTS, 300, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], closed=True)
    sizes = {"vocab": tokenizer.vocab, "dim": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 64}
    save(make(spec_of("bert", sizes), 0), path)
    tokenizer.save(path)
    return path


def expected(folder: Path, pooling: Pooling | None = None) -> torch.Tensor:
    tokenizer = Tokenizer.load(folder)
    return embed(load(folder), [tokenizer.prompt(text) for text in TEXTS], pooling)


def test_vectors_line_by_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["embed", str(folder), "--text", TEXTS[0], "--text", TEXTS[1]]) == 0
    out = capsys.readouterr().out
    found = torch.tensor([json.loads(line) for line in out.splitlines()])
    assert torch.allclose(found, expected(folder), atol=1e-6)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    assert cli.main(["embed", str(folder), "--by", "cls", "--dimensions", "5", "--raw", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["texts"] == TEXTS
    pooling = Pooling(by="cls", dimensions=5, normalise=False)
    assert torch.allclose(torch.tensor(said["vectors"]), expected(folder, pooling), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--raw", "--text", "a"], "--by"),
        (["--by", "mean", "--dimensions", "0", "--text", "a"], "`dimensions`"),
        (["--text", "cat " * 200], "the context of this model holds 64"),
        ([], "There is no text"),
    ],
)
def test_wrong_usage(
    words: list[str],
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["embed", str(folder), *words]) == 2
    assert says in capsys.readouterr().err
