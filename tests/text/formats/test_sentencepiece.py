"""SentencePiece models against the library itself, over its options and odd text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from openbook.errors import TokenizerError
from openbook.text import TextStream, Tokenizer
from openbook.text.formats import charsmap, wire
from tests.text.formats import layouts

PLAIN: dict[str, dict[str, Any]] = {
    "bpe": {},
    "unigram": {"model_type": "unigram"},
    "char": {"model_type": "char", "vocab_size": 120, "byte_fallback": False},
    "no_bytes": {"byte_fallback": False},
    "no_dummy": {"add_dummy_prefix": False},
    "suffix": {"treat_whitespace_as_suffix": True},
    "unigram_suffix": {"model_type": "unigram", "treat_whitespace_as_suffix": True, "add_dummy_prefix": False},
    "spaces": {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    "unigram_spaces": {"model_type": "unigram", "remove_extra_whitespaces": False},
    "across": {"split_by_whitespace": False},
    "users": {"user_defined_symbols": ["<sep>", "ri", "▁▁", "\n", "the", "a b"], "remove_extra_whitespaces": False},
    "users_bytes": {"user_defined_symbols": ["<sep>", "▁▁", "▁▁▁▁"], "byte_fallback": True, "add_dummy_prefix": False},
    "unigram_users": {"model_type": "unigram", "user_defined_symbols": ["<sep>", "ri", "the"]},
    "control": {"control_symbols": ["<ctl>", "[x]"], "pad_id": 3},
    "names": {"unk_piece": "[UNK]", "bos_piece": "[B]", "unk_id": 3, "bos_id": 0, "eos_id": 1, "pad_id": 2},
}
TABLES: dict[str, dict[str, Any]] = {
    "bpe": {"normalization_rule_name": "nmt_nfkc"},
    "unigram": {"normalization_rule_name": "nmt_nfkc", "model_type": "unigram"},
    "spaces": {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
    "users": {"normalization_rule_name": "nmt_nfkc", "user_defined_symbols": ["<sep>", "ri", "the"]},
}


def score(theirs: Any, ids: list[int]) -> float:
    return sum(theirs.get_score(number) for number in ids)


def assert_equal_ids(ours: Tokenizer, theirs: Any, text: str) -> None:
    """Equal, or in a unigram model as likely to the last bits of single precision, in which the library adds."""
    got, expected = ours.encode(text), theirs.encode(text)
    if got != expected and json.loads(ours._backend.to_str())["model"]["type"] == "Unigram":
        assert score(theirs, got) == pytest.approx(score(theirs, expected), rel=1e-6), text
        assert theirs.decode(got) == theirs.decode(expected), text
        return
    assert got == expected, text


def check(options: dict[str, Any], path: Path, count: int) -> None:
    from sentencepiece import SentencePieceProcessor

    data = layouts.sentencepiece(**options)
    path.write_bytes(data)
    ours, theirs = Tokenizer.load(path), SentencePieceProcessor(model_proto=data)
    pieces = [theirs.id_to_piece(number).replace("▁", " ") for number in range(len(theirs))]
    edges = ["\x01", " \x01", "ri", "the the", "\n", "a b", "<sep>", "<sep> <sep>", "théé", "o\x1f\u0301", "ê\u0323"]
    for text in [*layouts.texts(1, count, pieces), *edges, *(letter * n for letter in "a l▁" for n in range(1, 20))]:
        if "treat_whitespace_as_suffix" in options and theirs.encode(text, out_type=str) == ["▁"]:
            continue  # a text that vanishes: the one thing that cannot be said
        assert_equal_ids(ours, theirs, text)
    assert ours.vocab == len(theirs)
    for role in ("bos", "eos", "pad", "unk"):
        number = getattr(theirs, f"{role}_id")()
        assert getattr(ours, role) == (None if number < 0 else number)


@pytest.mark.parametrize("kind", PLAIN)
def test_ids(kind: str, tmp_path: Path) -> None:
    check(PLAIN[kind], tmp_path / "x.model", 60)


@pytest.mark.slow
def test_everything_beside_everything(tmp_path: Path) -> None:
    """Characters that join, vanish, become several, or mean something to the steps here, in every order."""
    from sentencepiece import SentencePieceProcessor

    data = layouts.sentencepiece(**TABLES["bpe"])
    (tmp_path / "x.model").write_bytes(data)
    ours, theirs = Tokenizer.load(tmp_path / "x.model"), SentencePieceProcessor(model_proto=data)
    one = [
        "a",
        "\x01",
        "\ufeff",
        " ",
        "\xad",
        "\u0301",
        "½",
        "ﬁ",
        "\u200d",
        "👩",
        "\r",
        "e\u0301",
        "가",
        "ᄀ",
        "\u1161",
    ]
    one += ["\u11a8", "▁", "か", "ﾞ", "ê", "\u0323"]
    for text in map("".join, itertools.product(one, repeat=3)):
        assert ours.encode(text) == theirs.encode(text), text
    for text in ("a\u0344", "υ\u0344", "\u0308\u0344\u0301", "か\u0344", "x\u0f71\u0f73\u0344"):  # marks in one
        assert ours.encode(text) == theirs.encode(text), text
    walls = theirs.encode(f"a{charsmap.OTHER}b")  # in this model an unknown character is its bytes
    assert len(ours.encode(f"a{charsmap.WALL}b")) == len(ours.encode(f"a{charsmap.GAP}b")) == len(walls)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
def test_ids_with_a_table_of_characters(kind: str, tmp_path: Path) -> None:
    check(TABLES[kind], tmp_path / "x.model", 800)


def test_a_small_table_of_characters(tmp_path: Path) -> None:
    """A table of one's own: characters that become one, several, none, with marks behind them."""
    from sentencepiece import SentencePieceProcessor

    rules = ["00BD\t31 2F 32", "FF41\t61", "AD\t", "3000\t20", "FB01\t66 69"]
    (tmp_path / "rules.tsv").write_text("\n".join(rules) + "\n")
    data = layouts.sentencepiece(normalization_rule_tsv=str(tmp_path / "rules.tsv"), normalization_rule_name="")
    (tmp_path / "x.model").write_bytes(data)
    ours, theirs = Tokenizer.load(tmp_path / "x.model"), SentencePieceProcessor(model_proto=data)
    for text in [
        *layouts.texts(2, 100, ["½", "ａ", "\xad", "\u3000", "ﬁ"]),
        "½\u0301",
        "ﬁ\u0301\u0323x",
        "a\xad\u0301",
    ]:
        assert ours.encode(text) == theirs.encode(text), text


def test_a_table_that_joins_in_its_own_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.tsv").write_text("61 62\t63\n")
    data = layouts.sentencepiece(normalization_rule_tsv=str(tmp_path / "rules.tsv"), normalization_rule_name="")
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"\d+ rules of its own that no tokenizer.json can say"):
        Tokenizer.load(tmp_path / "x.model")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "no_dummy", "spaces"])
def test_text(kind: str, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    data = layouts.sentencepiece(**PLAIN[kind])
    (tmp_path / "x.model").write_bytes(data)
    ours, theirs = Tokenizer.load(tmp_path), SentencePieceProcessor(model_proto=data)
    for text in layouts.texts(3, 40):
        ids = [number for number in theirs.encode(text) if number != ours.unk]
        assert ours.decode(ids) == theirs.decode(ids), text
        stream = TextStream(ours)
        assert "".join(map(stream.feed, ids)) + stream.finish() == ours.decode(ids)


def test_what_stands_around_a_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(layouts.sentencepiece())
    assert Tokenizer.load(tmp_path).prefix == ()
    config = {"add_bos_token": True, "add_eos_token": True, "tokenizer_class": "LlamaTokenizer", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.prefix, tokenizer.suffix) == ((1,), (2,))


def test_t5_counts_its_sentinels_down(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(layouts.sentencepiece(model_type="unigram", byte_fallback=False))
    plain = Tokenizer.load(tmp_path)
    names = [f"<extra_id_{number}>" for number in range(4)]
    config = {"extra_ids": 4, "additional_special_tokens": names, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.specials[name] for name in names] == [plain.vocab + number for number in (3, 2, 1, 0)]
    assert tokenizer.suffix == (plain.eos,)


def test_tokens_that_were_added(tmp_path: Path) -> None:
    """added_tokens.json beside a model, as older folders have it."""
    (tmp_path / "tokenizer.model").write_bytes(layouts.sentencepiece())
    size = Tokenizer.load(tmp_path).vocab
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size, "<tool>": size + 1}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad, tokenizer.vocab) == (size, size + 2)
    assert size + 1 in tokenizer.encode("a<tool>")
    assert size not in tokenizer.encode("a<pad>")
    (tmp_path / "added_tokens.json").write_text("[]")
    with pytest.raises(TokenizerError, match="tokens and their ids"):
        Tokenizer.load(tmp_path)


class TestNumbering:
    def test_fairseq(self, tmp_path: Path) -> None:
        """As in XLM-R: ids one higher, with four tokens in front and a mask at the end."""
        data = layouts.sentencepiece(model_type="unigram", byte_fallback=False)
        (tmp_path / "sentencepiece.bpe.model").write_bytes(data)
        with pytest.raises(TokenizerError, match="not the model's own"):
            Tokenizer.load(tmp_path)
        import sentencepiece as spm

        theirs = spm.SentencePieceProcessor(model_proto=data)
        names = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", len(theirs) + 1: "<mask>"}
        added = {str(number): {"content": name, "special": True} for number, name in names.items()}
        roles = {
            "bos": "<s>",
            "eos": "</s>",
            "cls": "<s>",
            "sep": "</s>",
            "pad": "<pad>",
            "unk": "<unk>",
            "mask": "<mask>",
        }
        config = {f"{role}_token": name for role, name in roles.items()} | {"added_tokens_decoder": added}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        ours = Tokenizer.load(tmp_path)
        assert ours.vocab == len(theirs) + 2
        for text in ["the river was cold", "naïve café", "a  b"]:
            expected = [3 if number == 0 else number + 1 for number in theirs.encode(text)]
            assert ours.prompt(text) == [0, *expected, 2]

    def test_ids_that_contradict_the_model(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(layouts.sentencepiece())
        config = {"added_tokens_decoder": {"7": {"content": "<s>"}}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(TokenizerError, match="not the model's own"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a\x03\x0a\x01a", "one unknown piece"),
        (b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a", "different and not empty"),
        (b"\x0a\x03\x0a\x01a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fx", "reaches beyond the end"),
        (b"\x0a\x03\x0a\x01a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        (b"\x0a\x03\x0a\x01\xff", "no SentencePiece model"),
        (b"\x0a\x05\x0a\x01a\x18\x09", "9 is not a valid Kind"),
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "score is no number"),
    ],
)
def test_damaged(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.load(tmp_path)


def test_word_models_are_refused(tmp_path: Path) -> None:
    data = layouts.sentencepiece(model_type="word", vocab_size=40, byte_fallback=False)
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(TokenizerError, match="whole words"):
        Tokenizer.load(tmp_path)


def test_wire() -> None:
    assert list(wire.fields(b"\x08\x96\x01\x12\x02hi\x1d\x00\x00\x80\x3f")) == [
        (1, 150),
        (2, b"hi"),
        (3, b"\0\0\x80\x3f"),
    ]


def test_a_damaged_table_of_characters() -> None:
    for table in (b"", b"\x08\0\0\0abc", b"\x04\0\0\0\xff\xff\xff\xffx", b"\x04\0\0\x10" + b"x" * 100):
        try:
            charsmap.table(table)
        except ValueError:
            continue
