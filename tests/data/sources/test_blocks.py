"""Blocks: read side by side, they give what the whole file gives."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from pathlib import Path

import pytest

from openbook.data.documents import Document, find_files, read_documents
from openbook.data.sources import blocks as module
from openbook.data.sources.blocks import Block, blocks, read_block

WORDS = ["one", "zwölf", "三", "🙂", "a\u2028b", '"quoted"', "<|endoftext|>", "tail\\"]


def told(documents: list[Document]) -> list[tuple[str, int, int, dict[str, object]]]:
    return [(d.text, d.at, d.end, dict(d.meta)) for d in documents]


def lines_of_json(seed: int) -> str:
    chance = random.Random(seed)
    lines = []
    for number in range(chance.randrange(1, 60)):
        text = " ".join(chance.choices(WORDS, k=chance.choice([1, 3, 200])))
        lines.append(json.dumps({"id": number, "text": text}, ensure_ascii=chance.random() < 0.5))
        lines += [""] * chance.choice([0, 0, 2])
    return chance.choice(["\n", "\r\n"]).join(lines) + chance.choice(["", "\n"])


def parted_text(seed: int) -> str:
    chance = random.Random(seed)
    lines = []
    for _ in range(chance.randrange(1, 120)):
        many = " ".join(chance.choices(WORDS, k=chance.choice([1, 3, 100])))
        lines.append(chance.choice(["<|endoftext|>", " <|endoftext|>\t", "", many, many]))
    return "\n".join(lines) + "\nend" + chance.choice(["", "\n", "\n<|endoftext|>"])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", [lines_of_json, parted_text])
def test_blocks_together_are_the_file(tmp_path: Path, kind: object, seed: int) -> None:
    path = tmp_path / ("a.jsonl" if kind is lines_of_json else "a.txt")
    path.write_text("\ufeff" * (seed % 3 == 0) + kind(seed), newline="")  # type: ignore[operator]
    whole = told(list(read_documents(path)))
    if kind is parted_text:
        data = path.read_bytes()
        assert all(data[at:].removeprefix(b"\xef\xbb\xbf").startswith(text.encode()) for text, at, _, _ in whole)
    for size in (1, 7, 100, 1000, 1 << 20):
        parts = blocks([path], size)
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert parts[0].start == 0
        assert parts[-1].end == path.stat().st_size
        assert told([d for part in parts for d in read_block(part)]) == whole


def test_a_cut_within_a_document_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: text cut at any line end."""
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n<|endoftext|>\nthree\nfour\n<|endoftext|>\nfive\n" * 3)
    right = module._next_end
    monkeypatch.setattr(module, "_next_end", lambda file, _: right(file, b""))
    assert told([d for part in blocks([path], 8) for d in read_block(part)]) != told(list(read_documents(path)))


def test_what_cannot_be_parted_is_one_block(tmp_path: Path) -> None:
    lines = b'{"text": "a"}\n' * 100
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.jsonl").write_bytes(lines)
    (tmp_path / "c.txt").write_bytes(b"no separator\n" * 100)
    (tmp_path / "d.txt").write_bytes("with\n<|endoftext|>\nseparators\n".encode("utf-16"))
    parts = blocks(find_files(tmp_path), 100)
    assert [sum(part.path.name == name for part in parts) for name in ("a.jsonl.gz", "b.jsonl", "c.txt", "d.txt")] == [
        1, 13, 1, 1,
    ]  # fmt: skip
    assert all(part.end - part.start <= 150 for part in parts if part.path.name == "b.jsonl")
    assert pickle.loads(pickle.dumps(parts)) == parts
    assert [d.text for part in parts if part.path.name == "d.txt" for d in read_block(part)] == [
        "with\n",
        "separators\n",
    ]


def test_lines_are_counted_where_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 10)
    first, second = blocks([path], 70)
    assert [d.line for d in read_block(first)] == [1, 2, 3, 4, 5]
    assert [(d.line, d.at) for d in read_block(second)] == [(0, at) for at in range(70, 140, 14)]
    assert Block(path, 0, 140, 140).whole
    assert not first.whole
