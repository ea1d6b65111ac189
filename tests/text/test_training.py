"""Training WordPiece and Unigram tokenizers: what they promise, that other tools load them, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbook.errors import InputError, TokenizerError
from openbook.text import Tokenizer
from tests.text.kinds import ODD, SENTENCES


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 3, 600, kind="unigram")


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 3, 600, kind="wordpiece")


class TestUnigram:
    def test_every_text_is_kept(self, unigram: Tokenizer) -> None:
        for text in [*SENTENCES, *ODD, "<unk> <0x41><0xE2>", "<|bos|>"]:
            assert unigram.decode(unigram.encode(text)) == text.replace("▁", " ")
            assert unigram.unk not in unigram.encode(text)

    @given(text=st.text(max_size=40))
    def test_any_text_is_kept(self, unigram: Tokenizer, text: str) -> None:
        assert unigram.decode(unigram.encode(text)) == text.replace("▁", " ")

    def test_its_ids(self, unigram: Tokenizer) -> None:
        assert unigram.vocab <= 600
        assert [unigram.unk, unigram.bos, unigram.eos, unigram.pad] == [0, 1, 2, 3]
        assert unigram.token(8) == "<0x00>"
        assert unigram.token_bytes(8 + 0xE2) == b"\xe2"
        assert unigram.prompt("a")[0] == unigram.bos

    def test_more_characters_than_room(self) -> None:
        han = "".join(chr(0x4E00 + number) for number in range(3000))
        tokenizer = Tokenizer.train([han, "aaa bbb"], 400, kind="unigram")
        assert tokenizer.vocab <= 400
        assert tokenizer.decode(tokenizer.encode(han)) == han
        rare = Tokenizer.train([han], 310, kind="unigram")  # no word is left of frequent characters
        assert rare.decode(rare.encode(han)) == han


class TestWordPiece:
    def test_its_ids(self, wordpiece: Tokenizer) -> None:
        names = [wordpiece.pad, wordpiece.unk, wordpiece.cls, wordpiece.sep, wordpiece.mask]
        assert names == [0, 1, 2, 3, 4]
        assert wordpiece.vocab <= 600
        ids = wordpiece.prompt("The fox said")
        assert (ids[0], ids[-1]) == (wordpiece.cls, wordpiece.sep)
        assert wordpiece.decode(ids) == "The fox said"

    def test_lower_case(self) -> None:
        tokenizer = Tokenizer.train(SENTENCES * 3, 400, kind="wordpiece", lowercase=True)
        assert tokenizer.decode(tokenizer.encode("THE Fóx")) == "the fox"

    def test_what_has_no_token_is_unknown(self, wordpiece: Tokenizer) -> None:
        assert wordpiece.encode("\u0e01") == [wordpiece.unk]

    def test_more_characters_than_room(self) -> None:
        han = " ".join(chr(0x4E00 + number) for number in range(3000))
        assert Tokenizer.train([han], 200, kind="wordpiece").vocab <= 200


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
class TestBoth:
    def test_saved_and_loaded(self, kind: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        tokenizer: Tokenizer = request.getfixturevalue(kind)
        tokenizer.save(tmp_path)
        assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint

    @pytest.mark.slow
    def test_transformers_gives_the_same(self, kind: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        import transformers

        tokenizer: Tokenizer = request.getfixturevalue(kind)
        tokenizer.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in [*SENTENCES, *ODD]:
            ids = tokenizer.encode(text)
            assert theirs(text, add_special_tokens=False).input_ids == ids
            assert theirs(text).input_ids == tokenizer.prompt(text)
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)

    def test_an_unknown_token_is_added(self, kind: Any) -> None:
        tokenizer = Tokenizer.train(SENTENCES * 3, 400, ["<s>", "</s>"], kind=kind)
        assert tokenizer.unk is not None
        assert set(tokenizer.specials) > {"<s>", "</s>"}

    @pytest.mark.slow
    def test_the_same_in_another_process(self, kind: Any) -> None:
        """Their hash tables are laid out otherwise."""
        code = (
            "from openbook.text import Tokenizer; from tests.text.kinds import SENTENCES;"
            f"print(Tokenizer.train(SENTENCES * 3, 450, kind={kind!r}).fingerprint)"
        )
        runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(3)]
        assert len({run.stdout for run in runs}) == 1

    def test_a_line_that_is_one_word(self, kind: Any) -> None:
        plain = Tokenizer.train(SENTENCES * 3, 450, kind=kind)
        assert Tokenizer.train([*SENTENCES * 3, "a" * 300_000], 450, kind=kind).fingerprint == plain.fingerprint

    def test_too_small(self, kind: Any) -> None:
        with pytest.raises(TokenizerError, match=r"Use \d+ or more"):
            Tokenizer.train(SENTENCES, 8, kind=kind)

    def test_no_text(self, kind: Any) -> None:
        with pytest.raises(TokenizerError, match="no text"):
            Tokenizer.train(["", ""], 400, kind=kind)


def test_refusals() -> None:
    with pytest.raises(TokenizerError, match="Did you mean"):
        Tokenizer.train(["a"], 400, kind="unigramm")  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="lowercase"):
        Tokenizer.train(["a"], 400, lowercase=True)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_sizes_and_names_that_are_none(kind: Any) -> None:
    """A vocabulary without bounds would end the process: the library makes room for it at once."""
    for vocab in (1 << 40, True, 300.0, "300"):
        with pytest.raises(TokenizerError, match="whole number up to"):
            Tokenizer.train(SENTENCES, vocab, kind=kind)  # type: ignore[arg-type]
    assert Tokenizer.train(SENTENCES[:1], 1 << 24, kind=kind).vocab < 600
    with pytest.raises(InputError, match="half a character"):
        Tokenizer.train(SENTENCES, 600, ["<\ud800>"], kind=kind)
