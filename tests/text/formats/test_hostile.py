"""Damaged files of every layout: a TokenizerError or a tokenizer, never anything else, and never much memory."""

from __future__ import annotations

import random
import tracemalloc
import warnings
from pathlib import Path

import pytest

from openbook.errors import OpenbookWarning, TokenizerError
from tests.text.formats import layouts

FILES = {
    "gpt2": ["vocab.json", "merges.txt"],
    "bert": ["vocab.txt"],
    "spm": ["tokenizer.model"],
    "spm_unigram": ["spiece.model"],
    "spm_table": ["x.model"],
    "tekken": ["tekken.json"],
    "gpt2.gguf": [""],
    "llama.gguf": [""],
    "ranks.tiktoken": [""],
}
MOST = 64 << 20  # bytes: a thousand times what these files hold


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return layouts.write_all(tmp_path_factory.mktemp("layouts"))


def damage(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, left out, doubled, or made as large as they can be; or the end cut off."""
    at = draw.randrange(len(data))
    chance = draw.random()
    if chance < 0.5:
        at = draw.randrange(min(len(data), 400))  # where the lengths and counts are
    elif chance < 0.8:
        at = len(data) - 1 - draw.randrange(min(len(data), 1500))  # where a model says how it is normalised
    length = draw.choice([1, 1, 2, 4, 8, 40])
    piece = data[at : at + length]
    what = draw.randrange(6)
    if what == 0:
        return data[:at]
    put = [b"", bytes(draw.randrange(256) for _ in piece), b"", piece * 2, b"\xff" * len(piece), b"\0" * len(piece)]
    return data[:at] + put[what] + data[at + length :]


def survives(name: str, file: Path, data: bytes, path: Path) -> None:
    original = file.read_bytes()
    file.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OpenbookWarning)
            layouts.load(name, path).encode("The fox, 12 naïve ½\xadａ\u3000你好")
    except TokenizerError:
        pass
    finally:
        file.write_bytes(original)


def each(name: str, path: Path, count: int) -> None:
    for inner in FILES[name]:
        file = path / inner if inner else path
        data, draw = file.read_bytes(), random.Random(f"{name}{inner}")
        for _ in range(count):
            survives(name, file, damage(data, draw), path)


@pytest.mark.parametrize("name", FILES)
def test_a_few(name: str, written: dict[str, Path]) -> None:
    tracemalloc.start()
    try:
        each(name, written[name], 8)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


@pytest.mark.soak
@pytest.mark.parametrize("name", FILES)
def test_many(name: str, written: dict[str, Path]) -> None:
    each(name, written[name], 150)


def test_nothing_at_all(tmp_path: Path) -> None:
    for name in ("x.tiktoken", "x.model", "vocab.txt", "x.gguf", "tekken.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(TokenizerError):
            layouts.load(name, tmp_path / name)
