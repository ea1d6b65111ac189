"""A tokenizer of bytes, and text to prepare with it: what the tests of data/ share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openbook.data.packing import Ints
from openbook.data.prepare import prepare
from openbook.data.shards import Shards

SLICE = Path(__file__).parent / "slices" / "stories.jsonl"


class Bytes:
    """Every byte is a token; bos and eos stand behind the bytes, if there are any."""

    def __init__(self, *, bos: bool = True, eos: bool = True, vocab: int = 300) -> None:
        self.vocab = vocab
        self.bos = 256 if bos else None
        self.eos = 257 if eos else None
        self.fingerprint = f"bytes-{bos}-{eos}-{vocab}"
        self.calls = 0

    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]:
        self.calls += 1
        return [list(text.encode()) for text in texts]

    def token_bytes(self, number: int, /) -> bytes:
        return bytes([number]) if number < 256 else b""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode()


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make(folder: Path, texts: Sequence[str], tokenizer: Bytes | None = None, **options: object) -> Shards:
    """Prepared shards of `texts`."""
    source = write_jsonl(folder / "source.jsonl", texts)
    return prepare(source, tokenizer or Bytes(), folder / "prepared", **options)  # type: ignore[arg-type]


class Run:
    """A sequence of ids in memory, for packing alone: id i stands at place i."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.bounds: Ints = np.cumsum([0, *lengths], dtype=np.int64)
        self.ids: Ints = np.arange(int(self.bounds[-1]), dtype=np.int64)

    def read(self, start: int, count: int) -> Ints:
        return self.ids[start : start + count]
