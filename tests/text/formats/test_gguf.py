"""The vocabulary in a GGUF: small ones of each kind, against the library whose vocabulary was put into them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from openbook.errors import TokenizerError
from openbook.text import Tokenizer
from openbook.text.formats.byte_level import translate
from openbook.text.formats.gguf_header import read_header
from openbook.text.formats.gguf_splits import SPLITS
from tests.text.formats import layouts


def load(values: dict[str, Any], folder: Path) -> Tokenizer:
    (folder / "x.gguf").write_bytes(layouts.gguf(values))
    return Tokenizer.load(folder / "x.gguf")


def test_merges(tmp_path: Path) -> None:
    table = layouts.ranks()
    ours = load(layouts.gguf_of_merges(table), tmp_path)
    path = tmp_path / "x.tiktoken"
    path.write_bytes(layouts.rank_file(table))
    theirs = Tokenizer.load(path, pattern=SPLITS["gpt-2"].patterns[0])
    for text in layouts.texts(1, 100):
        assert ours.encode(text) == theirs.encode(text)
    assert (ours.eos, ours.stops, ours.prefix) == (len(table), (len(table),), ())
    assert ours.templates["default"].startswith("{% for")
    assert ours.encode("a<tool>b")[1] == len(table) + 1  # user-defined: found in any text
    assert len(ours.encode("<|endoftext|>")) > 1  # control: found where it is allowed
    assert ours.encode("<|endoftext|>", allow_specials=True) == [len(table)]


def test_what_stands_around_a_text(tmp_path: Path) -> None:
    values = layouts.gguf_of_merges(layouts.ranks(), pre="llama-bpe") | {"tokenizer.ggml.bos_token_id": 65}
    assert load(values, tmp_path).prefix == (65,)
    values |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    tokenizer = load(values, tmp_path)
    assert (tokenizer.prefix, tokenizer.suffix) == ((), (len(layouts.ranks()),))


def test_without_types_every_token_is_normal(tmp_path: Path) -> None:
    values = layouts.gguf_of_merges(layouts.ranks())
    del values["tokenizer.ggml.token_type"]
    tokenizer = load(values, tmp_path)
    assert list(tokenizer.specials) == ["<|endoftext|>"]  # it has a role


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_pieces(kind: str, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    algorithm = "bpe" if kind == "llama" else "unigram"
    model = layouts.sentencepiece(model_type=algorithm, remove_extra_whitespaces=kind == "t5")
    ours, theirs = load(layouts.gguf_of_pieces(model, kind), tmp_path), SentencePieceProcessor(model_proto=model)
    for text in layouts.texts(2, 100):
        assert ours.encode(text) == theirs.encode(text), text
    assert (ours.bos, ours.eos, ours.unk) == (1, 2, 0)
    assert (ours.prefix, ours.suffix) == (((1,), ()) if kind == "llama" else ((), (2,)))


def test_word_pieces(tmp_path: Path) -> None:
    folder = layouts.write_all(tmp_path)["bert"]
    theirs = Tokenizer.load(folder)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    spelled = [
        one if number < 5 else one[2:] if one.startswith("##") else f"▁{one}" for number, one in enumerate(lines)
    ]
    values = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": spelled,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(lines) - 5),
        **{f"tokenizer.ggml.{role}_token_id": number for number, role in enumerate(["padding", "unknown", "cls"])},
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }
    ours = load(values, tmp_path)
    for text in ["The fox said: don't wait!", "naïve  CAFÉ, 你好。", "zzz\x00 the\u200briver", "x " * 200, "a" * 300]:
        got = ours.prompt(text)
        assert got == theirs.prompt(text) or "a" * 101 in text  # BERT's own limit on the length of a word is not there
    assert len(ours.encode("a" * 300)) == 300


def test_every_split_is_a_regular_expression() -> None:
    for name, rule in SPLITS.items():
        for pattern in rule.patterns:
            assert translate(pattern, name)


class TestDamaged:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"tokenizer.ggml.model": "rwkv"}, "of the kind 'rwkv', which is not read here: gpt2, llama"),
            ({"tokenizer.ggml.pre": "qwen"}, "rule 'qwen'.*Did you mean.*'qwen2'"),
            ({"tokenizer.ggml.tokens": ["a", "a"]}, "tokens must be different"),
            ({"tokenizer.ggml.tokens": [1, 2]}, "`tokenizer.ggml.tokens` must be a list of str"),
            ({"tokenizer.ggml.token_type": [1]}, "has 1 members for"),
            ({"tokenizer.ggml.token_type": [99] * 900}, "no such type"),
            ({"tokenizer.ggml.merges": ["ab"]}, "not a pair"),
            ({"tokenizer.ggml.merges": ["a xyzzy"]}, "cannot be used"),
            ({"tokenizer.ggml.add_bos_token": "yes"}, "must be true or false"),
        ],
    )
    def test_values(self, change: dict[str, Any], says: str, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=says):
            load(layouts.gguf_of_merges(layouts.ranks()) | change, tmp_path)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (struct.pack("<IQQ", 3, 0, 1 << 60), "claims 1152921504606846976 values"),
            (struct.pack("<IQQ", 9, 0, 0), "GGUF of version 9"),
            (struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "ends before"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60), "claims an array"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 5, 1 << 60), "ends before"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 4) * 9, "claims an array"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "no type 77"),
            (struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<I", 77), "no GGUF"),
            (b"", "no GGUF"),
        ],
    )
    def test_headers(self, body: bytes, says: str, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + body)
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.load(tmp_path)

    def test_what_is_not_wanted_is_not_kept(self, tmp_path: Path) -> None:
        values = {"other": ["x" * 1000] * 10, "more": [1, 2], "tokenizer.a": [True, False], "tokenizer.b": 0.5}
        (tmp_path / "x.gguf").write_bytes(layouts.gguf(values))
        assert read_header(tmp_path / "x.gguf", "tokenizer.") == {"a": [True, False], "b": 0.5}
