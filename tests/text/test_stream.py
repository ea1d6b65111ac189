"""What is streamed, joined, is what is decoded: for every kind of tokenizer, all ids, every place to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers as backends
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from openbook.text import TextStream, Tokenizer
from openbook.text.stream import _BYTES, Decoding, Kind
from tests.text.kinds import KINDS, ODD, SENTENCES, write


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("kinds")
    loaded = {kind: Tokenizer.load(write(kind, root / kind)) for kind in KINDS}
    return {**loaded, "trained": Tokenizer.train(SENTENCES * 3, 400)}


def pieces(tokenizer: Tokenizer, ids: list[int], *, skip_specials: bool = True) -> list[str]:
    stream = TextStream(tokenizer, skip_specials=skip_specials)
    return [*(stream.feed(number) for number in ids), stream.finish()]


@pytest.mark.parametrize("kind", [*KINDS, "trained"])
class TestWhole:
    def test_of_text(self, kind: str, tokenizers: dict[str, Tokenizer]) -> None:
        tokenizer = tokenizers[kind]
        for text in [*SENTENCES, *ODD]:
            ids = tokenizer.encode(text)
            for cut in range(len(ids) + 1):
                assert "".join(pieces(tokenizer, ids[:cut])) == tokenizer.decode(ids[:cut])

    @given(data=st.data())
    def test_of_any_ids(self, kind: str, data: st.DataObject, tokenizers: dict[str, Tokenizer]) -> None:
        tokenizer = tokenizers[kind]
        few = st.integers(0, tokenizer.vocab + 3)
        ids = data.draw(st.lists(st.one_of(few, st.integers(0, 40)), max_size=30))
        for skip in (True, False):
            whole = tokenizer.decode(ids, skip_specials=skip)
            assert "".join(pieces(tokenizer, ids, skip_specials=skip)) == whole

    @given(text=st.text(max_size=40))
    def test_of_any_text(self, kind: str, text: str, tokenizers: dict[str, Tokenizer]) -> None:
        tokenizer = tokenizers[kind]
        ids = tokenizer.encode(text)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)

    def test_can_be_used_again(self, kind: str, tokenizers: dict[str, Tokenizer]) -> None:
        tokenizer = tokenizers[kind]
        stream = TextStream(tokenizer)
        for text in SENTENCES:
            ids = tokenizer.encode(text)[:-1]
            assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)
        assert stream.finish() == ""


@pytest.mark.parametrize("kind", ["trained", "byte_level", "llama2", "gemma"])
def test_no_piece_ends_within_a_character(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    """While a valid text streams, no piece holds a replacement character, and each is what comes next in the text."""
    tokenizer = tokenizers[kind]
    for text in [*SENTENCES, "🙂" * 20]:
        shown = ""
        for piece in pieces(tokenizer, tokenizer.encode(text)):
            shown += piece
            assert "\ufffd" not in piece
            assert text.startswith(shown)
        assert shown == text


def test_text_comes_as_soon_as_it_is_certain(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["trained"]
    ids = [number for byte in "a🙂b".encode() for number in _byte_ids(tokenizer, byte)]
    assert pieces(tokenizer, ids) == ["a", "", "", "", "🙂", "b", ""]


def test_bytes_that_are_no_character(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["trained"]
    for wrong in (b"\xff", b"\x80\x80", b"\xe2\x82", b"\xf0\x9fA", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        ids = [number for byte in b"x" + wrong + b"y" for number in _byte_ids(tokenizer, byte)]
        for cut in range(len(ids) + 1):
            assert "".join(pieces(tokenizer, ids[:cut])) == tokenizer.decode(ids[:cut])


def test_a_special_token_with_two_ids() -> None:
    """As trainers of Unigram make them: decoding leaves out both."""
    backend = backends.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("<unk>", -2.0)], unk_id=0))
    backend.add_special_tokens(["<unk>"])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("aéa")
    assert len(ids) == 3
    for skip in (True, False):
        assert "".join(pieces(tokenizer, ids, skip_specials=skip)) == tokenizer.decode(ids, skip_specials=skip)


def test_the_byte_alphabet() -> None:
    assert set(_BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(_BYTES.values()) == list(range(256))


def test_kinds_of_decoders() -> None:
    assert Decoding(None).kind is Kind.PIECES
    assert Decoding(decoders.ByteLevel()).kind is Kind.BYTES
    assert Decoding(decoders.CTC()).kind is Kind.WHOLE
    assert Decoding(decoders.BPEDecoder()).kind is Kind.PIECES
    assert Decoding(decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")])).kind is Kind.WHOLE
    assert Decoding(decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)])).kind is Kind.WHOLE


def test_bytes_of_pieces(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama2"]
    assert tokenizer.token_bytes(tokenizer.token_id("<0xE2>") or 0) == b"\xe2"
    assert tokenizer.token_bytes(tokenizer.token_id("▁the") or 0) == b" the"
    words = tokenizers["wordpiece"]
    assert words.token_bytes(words.token_id("##i") or 0) == b"i"
    assert words.token_bytes(words.token_id("the") or 0) == b" the"
    for kind in ("llama2", "gemma", "unigram"):
        ids = tokenizers[kind].encode("x 🙂 the river")
        joined = b"".join(map(tokenizers[kind].token_bytes, ids)).decode()
        assert joined.lstrip() == tokenizers[kind].decode(ids)


def _byte_ids(tokenizer: Tokenizer, byte: int) -> list[int]:
    return [number for number in range(tokenizer.vocab) if tokenizer.token_bytes(number) == bytes([byte])][:1]


def test_streams_of_a_saved_tokenizer_agree(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizers["llama2"].save(tmp_path)
    again = Tokenizer.load(tmp_path)
    for text in SENTENCES:
        assert pieces(again, again.encode(text)) == pieces(tokenizers["llama2"], tokenizers["llama2"].encode(text))
