"""Rank files, tekken.json, vocab.json with merges.txt, vocab.txt: the ids of the libraries that they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbook.errors import OpenbookWarning, TokenizerError, UsageError
from openbook.text import Tokenizer
from openbook.text.formats import merges
from openbook.text.formats.byte_level import translate
from openbook.text.formats.ranks import PUBLISHED
from tests.text.formats import layouts


@pytest.fixture(scope="module")
def table() -> dict[bytes, int]:
    return layouts.ranks()


def written(folder: Path, data: bytes, name: str = "x.tiktoken") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_ranks_against_tiktoken(table: dict[bytes, int], tmp_path: Path) -> None:
    import tiktoken

    theirs = tiktoken.Encoding("x", pat_str=layouts.PATTERN, mergeable_ranks=table, special_tokens={"<|end|>": 900})
    for name in ("x.tiktoken", "tokenizer.model", "plain"):
        path = written(tmp_path, layouts.rank_file(table), name)
        ours = Tokenizer.load(path, pattern=layouts.PATTERN, specials={"<|end|>": 900})
        for text in layouts.texts(1, 300):
            assert ours.encode(text) == theirs.encode_ordinary(text), text
    assert ours.vocab == theirs.n_vocab == 901
    assert ours.encode("a<|end|>", allow_specials=True) == theirs.encode("a<|end|>", allowed_special="all")


def test_ranks_that_merging_does_not_reach(table: dict[bytes, int], tmp_path: Path) -> None:
    """A token that no merge makes is taken where it is a whole word, and only there."""
    import tiktoken

    odd = {**table, b"xqzw": 1000, b" xqzw": 1001, b"zwv": 700, b"qz": 1002}
    theirs = tiktoken.Encoding("x", pat_str=layouts.PATTERN, mergeable_ranks=odd, special_tokens={})
    ours = Tokenizer.load(written(tmp_path, layouts.rank_file(odd)), pattern=layouts.PATTERN)
    for text in ["xqzw", " xqzw", "xqzwv", "axqzw xqzw xqzwv", "zwv", "qzwv"]:
        assert ours.encode(text) == theirs.encode_ordinary(text), text


def test_the_published_patterns(table: dict[bytes, int], tmp_path: Path) -> None:
    import tiktoken

    path = written(tmp_path, layouts.rank_file(table))
    for pattern in {known.pattern for known in PUBLISHED.values()}:
        theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=table, special_tokens={})
        ours = Tokenizer.load(path, pattern=pattern)
        for text in layouts.texts(6, 150):
            assert ours.encode(text) == theirs.encode_ordinary(text), (pattern, text)


def test_a_rank_file_does_not_say_how_text_is_split(table: dict[bytes, int], tmp_path: Path) -> None:
    path = written(tmp_path, layouts.rank_file(table))
    with pytest.raises(TokenizerError, match=rf"{len(table)} ranks of none of the encodings known.*`pattern=`"):
        Tokenizer.load(path)
    with pytest.raises(TokenizerError, match="no regular expression"):
        Tokenizer.load(path, pattern="(")
    with pytest.raises(TokenizerError, match="special token '<x>' cannot have the id 5"):
        Tokenizer.load(path, pattern=".", specials={"<x>": 5})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[1:], "1 of the 256 bytes have no rank, 0x00 among them"),
        (lambda lines: [*lines, lines[3]], "a second time"),
        (lambda lines: [*lines, b"eHh4eHg= 7\n"], "two tokens have the same rank"),
        (lambda lines: [*lines, b"eHh4eHg= seven\n"], "line 401 is no token in base64"),
        (lambda lines: [*lines, b"eHh4*eHg= 999\n"], "line 401 is no token in base64"),
        (lambda lines: [*lines, b"eHh4eHg= 99999999999999\n"], "line 401 is no token in base64"),
    ],
)
def test_damaged_ranks(change: Callable[[list[bytes]], list[bytes]], says: str, tmp_path: Path) -> None:
    table = {token: rank for token, rank in layouts.ranks().items() if rank < 400}
    lines = layouts.rank_file(table).splitlines(keepends=True)
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.load(written(tmp_path, b"".join(change(lines))), pattern=".")


def test_patterns_of_tiktoken_mean_the_same_here() -> None:
    """`$` is the end of the text; a counted group followed by + gives nothing back."""
    from tokenizers import Regex, pre_tokenizers

    def pieces(pattern: str, text: str) -> list[str]:
        split = pre_tokenizers.Split(Regex(translate(pattern, "x")), "isolated")
        return [piece for piece, _ in split.pre_tokenize_str(text)]

    assert pieces(r"\s+$|\s", "a  \n  b  \n ") == ["a", " ", " ", "\n", " ", " ", "b", "  \n "]
    assert pieces(r"\p{N}{1,3}+|x", "1234567") == ["123", "456", "7"]
    assert pieces(r"[$^]{2}+|\$", "$^$") == ["$^", "$"]
    with pytest.raises(TokenizerError, match="counted group"):
        translate(r"(ab){1,2}+", "x")


def test_one_pair_for_each_token_is_enough() -> None:
    """The merges of the last pairs make of every text what merging by priority makes of it."""
    import itertools

    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    priority = {
        text: float(number) for number, text in enumerate(["ab", "bc", "aa", "abc", "bca", "aab", "aabc", "cc"])
    }
    pairs = merges.last_pairs(priority, priority, "here")
    vocab = {text: number for number, text in enumerate(["a", "b", "c", *priority])}
    backend = Backend(models.BPE(vocab, merges.in_order(pairs, priority, "here")))
    for length in range(1, 8):
        for letters in itertools.product("abc", repeat=length):
            assert backend.encode("".join(letters)).tokens == merges.segment(list(letters), priority)


def test_equal_priorities_go_from_the_left() -> None:
    runs = {"a" * count: 1.0 for count in range(2, 6)}
    ordered = merges.in_order(merges.last_pairs(runs, runs, "here"), runs, "here")
    assert sorted(ordered) == [("a", "a"), ("aa", "a"), ("aaa", "a"), ("aaaa", "a")]
    assert ordered[-1] == ("a", "a")  # what is begun at the left goes on before anything begins further right
    circle = {"ab": 1.0, "ba": 1.0}
    with pytest.raises(TokenizerError, match="no list of merges"):
        merges.in_order(merges.last_pairs(circle, circle, "here"), circle, "here")


def test_tokens_of_absurd_length() -> None:
    long = {"a" * 30000: 1.0}
    with pytest.raises(TokenizerError, match="absurdly long"):
        merges.last_pairs(long, long, "here")


class TestTekken:
    def test_against_mistral_common(self, table: dict[bytes, int], tmp_path: Path) -> None:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        path = tmp_path / "tekken.json"
        path.write_text(json.dumps(layouts.tekken(table)), encoding="utf-8")
        theirs, ours = Tekkenizer.from_file(path), Tokenizer.load(tmp_path)
        for text in layouts.texts(2, 200):
            assert ours.encode(text, bos=True, eos=True) == theirs.encode(text, True, True), text
        assert ours.vocab == theirs.n_words
        assert [ours.token(number) for number in range(25)] == [theirs.id_to_piece(number) for number in range(25)]

    @pytest.mark.parametrize(
        ("key", "value", "says"),
        [
            ("config", {"pattern": "."}, "`config` needs"),
            ("vocab", [], "`vocab` has 0 tokens"),
            ("vocab", [{"rank": 0, "token_bytes": "AA=="}, {"rank": 7}] * 300, "entry 1 of `vocab`"),
            ("special_tokens", [{"rank": 1, "token_str": "<s>", "is_control": True}], "special tokens must be"),
            ("special_tokens", "<s>", "must be a list"),
        ],
    )
    def test_damaged(self, key: str, value: Any, says: str, table: dict[bytes, int], tmp_path: Path) -> None:
        path = tmp_path / "tekken.json"
        path.write_text(json.dumps({**layouts.tekken(table), key: value}), encoding="utf-8")
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.load(path)


class TestFiles:
    def test_gpt2_against_transformers(self, tmp_path: Path) -> None:
        from transformers import GPT2Tokenizer

        folder = layouts.bpe_files(tmp_path)
        ours, theirs = Tokenizer.load(folder), GPT2Tokenizer.from_pretrained(folder)
        for text in layouts.texts(3, 200):
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
        assert ours.eos == theirs.eos_token_id
        (folder / "encoder.json").write_bytes((folder / "vocab.json").read_bytes())
        (folder / "vocab.bpe").write_bytes((folder / "merges.txt").read_bytes())
        for name in ("encoder.json", "vocab.bpe", "merges.txt"):
            assert Tokenizer.load(folder / name).fingerprint == ours.fingerprint

    def test_roberta_against_transformers(self, tmp_path: Path) -> None:
        from transformers import RobertaTokenizer

        folder = layouts.bpe_files(tmp_path, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
        ours, theirs = Tokenizer.load(folder), RobertaTokenizer.from_pretrained(folder)
        for text in layouts.texts(4, 100):
            if not any(name in text for name in ours.specials):
                assert ours.prompt(text) == theirs(text).input_ids, text
        assert (ours.cls, ours.sep, ours.mask, ours.pad) == (0, 2, 4, 1)

    def test_another_split_is_noticed(self, table: dict[bytes, int], tmp_path: Path) -> None:
        """A vocabulary whose tokens reach across GPT-2's words was not made with its pattern."""
        state = layouts.gguf_of_merges(table)
        vocab = {token: number for number, token in enumerate(state["tokenizer.ggml.tokens"])}
        (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *state["tokenizer.ggml.merges"]]
        more = [(".", "Ċ"), ("(", "t"), (")", "Ċ"), ("!", "Ċ"), (",", "Ċ"), ("-", "r"), ("_", "a")]
        vocab |= {left + right: 1000 + number for number, (left, right) in enumerate(more)}
        (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        assert Tokenizer.load(tmp_path)
        (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        (tmp_path / "merges.txt").write_text("\n".join([*lines, *map(" ".join, more)]), encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"not made with GPT-2's split pattern.*`pattern=`"):
            Tokenizer.load(tmp_path)
        assert Tokenizer.load(tmp_path, pattern=r"\p{L}+|[^\p{L}]+").encode(".\n") == [1000]

    def test_bytes_without_a_token(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
        (tmp_path / "merges.txt").write_text("a b\n")
        with pytest.warns(OpenbookWarning, match="254 of the 256 bytes have no token"):
            assert Tokenizer.load(tmp_path).encode("abba") == [2, 1, 0]

    @pytest.mark.parametrize(
        ("vocab", "lines", "says"),
        [
            ('{"a": 0, "b": 0}', "", "two tokens have the same id"),
            ('{"a": 0, "b": -1}', "", "tokens and their ids"),
            ('{"a": 0', "", "not JSON"),
            ('{"a": 0, "b": 1}', "a b\n", "line 1 has 'ab', which is no token"),
            ('{"a": 0, "b": 1}', "ab\n", "line 1 is not a pair"),
            ('{"a</w>": 0, "a": 1, "aa</w>": 2}', "a a</w>\n", "not a byte-level vocabulary"),
        ],
    )
    def test_damaged(self, vocab: str, lines: str, says: str, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_text(vocab)
        (tmp_path / "merges.txt").write_text(lines)
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.load(tmp_path)


class TestWordPieces:
    @pytest.mark.parametrize(
        "config", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": True}]
    )
    def test_against_transformers(self, config: dict[str, Any], tmp_path: Path) -> None:
        from transformers import BertTokenizer

        folder = layouts.write_all(tmp_path)["bert"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        ours, theirs = Tokenizer.load(folder), BertTokenizer.from_pretrained(folder)
        for text in layouts.texts(5, 100):
            assert ours.prompt(text) == theirs(text).input_ids, text

    def test_case_is_read_off_the_vocabulary(self, tmp_path: Path) -> None:
        path = tmp_path / "vocab.txt"
        path.write_text("[UNK]\nthe\nfox\n")
        assert Tokenizer.load(path).encode("The FOX") == [1, 2]
        assert Tokenizer.load(path, lowercase=False).encode("The fox") == [0, 2]
        path.write_text("[UNK]\nthe\nThe\n")
        assert Tokenizer.load(tmp_path).encode("The the") == [2, 1]

    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.txt").write_text("a\nb\n")
        with pytest.raises(TokenizerError, match="no token for unknown words"):
            Tokenizer.load(tmp_path)
        (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
        with pytest.raises(TokenizerError, match="byte 6 is not UTF-8"):
            Tokenizer.load(tmp_path)


def test_a_folder_with_several_vocabularies(tmp_path: Path) -> None:
    for name in ("a.tiktoken", "b.tiktoken"):
        written(tmp_path, layouts.rank_file({bytes([byte]): byte for byte in range(256)}), name)
    with pytest.raises(TokenizerError, match=r"several vocabularies.*a\.tiktoken, b\.tiktoken"):
        Tokenizer.load(tmp_path)


def test_what_the_files_say_is_not_asked_for(tmp_path: Path) -> None:
    folders = layouts.write_all(tmp_path)
    for name, key in (("spm", "pattern"), ("gpt2", "lowercase"), ("bert", "pattern"), ("gpt2.gguf", "specials")):
        with pytest.raises(UsageError, match=f"`{key}` is of no use"):
            Tokenizer.load(folders[name], **{key: {} if key == "specials" else "x"})
    Tokenizer.load(folders["gpt2"]).save(tmp_path / "saved")
    with pytest.raises(UsageError, match="`pattern` is of no use"):
        Tokenizer.load(tmp_path / "saved", pattern=".")


def test_what_is_asked_for_is_of_its_kind(tmp_path: Path) -> None:
    path = written(tmp_path, layouts.rank_file({bytes([byte]): byte for byte in range(256)}))
    asked: list[dict[str, Any]] = [{"specials": ["<a>"]}, {"specials": {"<a>": "256"}}, {"specials": 3}, {"pattern": 3}]
    for wrong in asked:
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}` "):
            Tokenizer.load(path, **{"pattern": ".", **wrong})
