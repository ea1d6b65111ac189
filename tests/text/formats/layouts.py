"""Vocabularies of every published layout, made small: trained on a few sentences, written as their tools do it."""

from __future__ import annotations

import io
import json
import random
import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openbook.text import Tokenizer
from openbook.text.engine import ALPHABET
from tests.text.kinds import ODD, SENTENCES

PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s+"
WORDS = [
    "the",
    " river",
    "<0x41>",
    "<s>",
    "</s>",
    "▁▁▁",
    "          ",
    "hello",
    "<unk>",
    "ｶﾞ",
    "한",
    "ậ",
    "e\u0323\u0302",
]
POOLS = [
    "abcdefghij the ing ABC '",
    "    ▁",
    "  \n\t\r\u00a0\u3000\u2028\x85",
    "0123456789٣²½Ⅷ",
    "é\u0301\u0323ñ\u0303ÅſKßıİﬁ",
    "你好世界こんにちは한국어",
    "🙂👩\u200d👩🇮🇹\ufe0f",
    "\x00\x01\x1c\x1f\x7f\ufeff\u200b",
    '!?.,;:-_/\\"#$%<>[]',
    "नमस्तेقرأ",
]


def texts(seed: int, count: int, words: Sequence[str] = ()) -> Iterator[str]:
    """Odd texts: runs and mixtures of scripts, spaces, controls, marks, emoji and any character at all."""
    draw = random.Random(seed)
    yield from [*SENTENCES, *ODD]
    for _ in range(count):
        yield "".join(_one(draw, words) for _ in range(draw.randint(1, 20)))


def _one(draw: random.Random, words: Sequence[str]) -> str:
    chance = draw.random()
    if chance < 0.7:
        return draw.choice(draw.choice(POOLS))
    if chance < 0.95:
        return draw.choice([*WORDS, *words])
    return chr(draw.choice([draw.randint(1, 0xD7FF), draw.randint(0xE000, 0x10FFFF)]))


# ------------------------------------------------------------------------------------------- byte-level vocabularies


def ranks(vocab: int = 420) -> dict[bytes, int]:
    """Bytes in the order of tiktoken's files, then what training merges."""
    state = json.loads(Tokenizer.train(SENTENCES * 3, vocab, specials=())._backend.to_str())["model"]
    back = {character: byte for byte, character in enumerate(ALPHABET)}
    made = [bytes(back[character] for pair in merge for character in pair) for merge in state["merges"]]
    return {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *dict.fromkeys(made)])}


def rank_file(table: Mapping[bytes, int]) -> bytes:
    return b"".join(b64encode(token) + b" %d\n" % rank for token, rank in table.items())


def tekken(table: Mapping[bytes, int], specials: int = 25) -> dict[str, Any]:
    rows = [{"rank": n, "token_bytes": b64encode(t).decode(), "token_str": None} for t, n in table.items()]
    config = {"pattern": PATTERN, "num_vocab_tokens": len(rows), "default_vocab_size": len(rows) - 20 + specials}
    return {"config": {**config, "default_num_special_tokens": specials, "version": "v3"}, "vocab": rows}


def bpe_files(folder: Path, specials: Sequence[str] = ("<|endoftext|>",)) -> Path:
    """vocab.json and merges.txt, trained with GPT-2's split."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(SENTENCES * 3, vocab_size=420, special_tokens=list(specials), show_progress=False)
    made.save_model(str(folder))
    return folder


# ------------------------------------------------------------------------------------------------------ SentencePiece


def sentencepiece(**options: Any) -> bytes:
    """A model of SentencePiece's own trainer; the rule `identity`, if no other is asked for."""
    import sentencepiece as spm

    more = ["日本語のテキスト。ガギグ", "naïve café Ångström", "  def f(x):\n\treturn x", "12345 67 890", "a<b>c [x]"]
    usual = {"model_type": "bpe", "vocab_size": 420, "normalization_rule_name": "identity", "minloglevel": 2}
    usual |= {} if "user_defined_symbols" in options else {"byte_fallback": True}
    out = io.BytesIO()
    lines = iter([line for text in (SENTENCES + more) * 3 for line in text.split("\n")])
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, hard_vocab_limit=False, **{**usual, **options}
    )
    return out.getvalue()


# --------------------------------------------------------------------------------------------------------------- GGUF


def gguf(values: Mapping[str, Any]) -> bytes:
    """A GGUF with these values and no tensors."""
    body = b"".join(_string(key) + struct.pack("<I", _type(value)) + _value(value) for key, value in values.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + body


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _type(value: Any) -> int:
    return {bool: 7, int: 5, float: 6, str: 8, list: 9}[type(value)]


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return struct.pack("<IQ", _type(value[0]), len(value)) + b"".join(map(_value, value))
    return struct.pack({bool: "<?", int: "<i", float: "<f"}[type(value)], value)


def gguf_of_merges(table: Mapping[bytes, int], pre: str = "gpt-2") -> dict[str, Any]:
    """The vocabulary of some ranks as llama.cpp's converter writes it."""
    from openbook.text.formats.byte_level import spell
    from openbook.text.formats.merges import last_pairs

    pairs = last_pairs([token for token in table if len(token) > 1], table, "here")
    tokens = [*map(spell, table), "<|endoftext|>", "<tool>"]
    return {
        "general.architecture": "gpt2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(table) + [3, 4],
        "tokenizer.ggml.merges": [f"{spell(left)} {spell(right)}" for left, right in pairs.values()],
        "tokenizer.ggml.eos_token_id": len(table),
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }


def gguf_of_pieces(model: bytes, kind: str) -> dict[str, Any]:
    """A SentencePiece model as llama.cpp's converter writes it; `kind` is llama or t5."""
    from openbook.text.formats.sentencepiece import parse

    read = parse(model, Path("here"))
    made: dict[str, Any] = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": [piece.text for piece in read.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in read.pieces],
        "tokenizer.ggml.token_type": [int(piece.kind) for piece in read.pieces],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": read.spaces.dummy,
        "tokenizer.ggml.remove_extra_whitespaces": read.spaces.collapse,
    }
    if read.charsmap:
        made["tokenizer.ggml.precompiled_charsmap"] = list(read.charsmap)
    return made


# ---------------------------------------------------------------------------------------------------------------- all


def write_all(root: Path) -> dict[str, Path]:
    """One of each layout under `root`; what `Tokenizer.load` is given for it."""
    table = ranks()
    for name in ("gpt2", "roberta", "bert", "spm", "spm_unigram", "spm_table", "tekken"):
        (root / name).mkdir(parents=True, exist_ok=True)
    bpe_files(root / "gpt2")
    bpe_files(root / "roberta", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    words = sorted({word for text in SENTENCES for word in text.lower().split()})
    letters = sorted(set("".join(words)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters), *words]
    (root / "bert" / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    (root / "spm" / "tokenizer.model").write_bytes(sentencepiece())
    (root / "spm_unigram" / "spiece.model").write_bytes(sentencepiece(model_type="unigram"))
    rules = root / "rules.tsv"
    rules.write_text("00BD\t31 2F 32\nFF41\t61\nAD\t\n3000\t20\n")
    table_of_its_own = sentencepiece(normalization_rule_tsv=str(rules), normalization_rule_name="")
    (root / "spm_table" / "x.model").write_bytes(table_of_its_own)
    (root / "tekken" / "tekken.json").write_text(json.dumps(tekken(table)), encoding="utf-8")
    (root / "gpt2.gguf").write_bytes(gguf(gguf_of_merges(table)))
    (root / "llama.gguf").write_bytes(gguf(gguf_of_pieces(sentencepiece(), "llama")))
    (root / "ranks.tiktoken").write_bytes(rank_file(table))
    folders = {name: root / name for name in ("gpt2", "roberta", "bert", "spm", "spm_unigram", "spm_table", "tekken")}
    return folders | {name: root / name for name in ("gpt2.gguf", "llama.gguf", "ranks.tiktoken")}


def load(name: str, path: Path) -> Tokenizer:
    """Load what `write_all` wrote, with what a rank file does not say."""
    if name != "ranks.tiktoken":
        return Tokenizer.load(path)
    return Tokenizer.load(path, pattern=PATTERN, specials={"<|end|>": len(ranks())})
