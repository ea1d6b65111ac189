"""Loading, encoding and decoding against transformers for every kind of tokenizer; training; damaged files."""

from __future__ import annotations

import copy
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from openbook.errors import InputError, OpenbookError, TokenizerError
from openbook.text import Tokenizer, check_fits
from openbook.text.sealed import Sealed
from tests.text.kinds import KINDS, ODD, SENTENCES, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return {kind: write(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Tokenizer, Any]]:
    from transformers import AutoTokenizer

    return {kind: (Tokenizer.load(path), AutoTokenizer.from_pretrained(path)) for kind, path in folders.items()}


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 3, 400)


@pytest.mark.parametrize("kind", KINDS)
class TestAgainstTransformers:
    def test_ids(self, kind: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = pairs[kind]
        texts = [*SENTENCES, *ODD]
        for text in texts:
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
            assert ours.prompt(text) == theirs(text).input_ids, text
        assert ours.encode_batch(texts) == [ours.encode(text) for text in texts]
        ids, places = ours.encode_arrays(texts)
        assert [ids[start:end].tolist() for start, end in pairwise(places)] == ours.encode_batch(texts)

    def test_text(self, kind: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = pairs[kind]
        for text in [*SENTENCES, *ODD]:
            ids = theirs(text).input_ids
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(ids, skip_specials=skip) == expected

    def test_roles_and_size(self, kind: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = pairs[kind]
        assert ours.vocab == max(theirs.get_vocab().values()) + 1
        for role in ("bos", "eos", "pad", "mask", "sep", "cls"):
            assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
        if theirs.unk_token_id is not None:
            assert ours.unk == theirs.unk_token_id
        assert set(ours.specials.values()) == {
            number for number, token in theirs.added_tokens_decoder.items() if token.special
        }

    def test_names_of_special_tokens_are_parsed_on_request(
        self, kind: str, pairs: dict[str, tuple[Tokenizer, Any]]
    ) -> None:
        ours, theirs = pairs[kind]
        text = " a".join(f" {name}{name} x" for name in ours.specials)
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, allow_specials=True) == expected
        assert ours.encode(text, allow_specials=list(ours.specials)) == expected

    def test_save_and_load(self, kind: str, pairs: dict[str, tuple[Tokenizer, Any]], tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        ours, theirs = pairs[kind]
        ours.save(tmp_path)
        again, peer = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        assert again.fingerprint == ours.fingerprint
        assert (again.stops, again.prefix, again.suffix, again.specials) == (
            ours.stops,
            ours.prefix,
            ours.suffix,
            ours.specials,
        )
        for text in SENTENCES:
            assert again.prompt(text) == peer(text).input_ids == theirs(text).input_ids
        assert peer.special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("unigram", "word_level")])
def test_names_of_special_tokens_are_text(kind: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    """As transformers with split_special_tokens, for the kinds where that does keep them out."""
    ours, theirs = pairs[kind]
    for name in ours.specials:
        for text in (name, f"a{name}b", f" {name} {name}", name[:3] + name):
            assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("LlamaTokenizer", "llama2"),
        ("GemmaTokenizer", "gemma"),
        ("GPT2Tokenizer", "byte_level"),
        ("RobertaTokenizer", "byte_level"),
        ("Qwen2Tokenizer", "byte_level"),
        ("T5Tokenizer", "unigram"),
        ("BertTokenizer", "wordpiece"),
    ],
)
def test_folders_that_transformers_writes(made: str, kind: str, tmp_path: Path) -> None:
    """The classes of single models build pipelines of their own; the folder they save says all that they do."""
    import transformers

    model = json.loads(KINDS[kind]()[0].to_str())["model"]
    vocab = model["vocab"] if isinstance(model["vocab"], dict) else [tuple(entry) for entry in model["vocab"]]
    merges = {"merges": [tuple(merge) for merge in model["merges"]]} if "merges" in model else {}
    getattr(transformers, made)(vocab=vocab, **merges).save_pretrained(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == made
    for text in [*SENTENCES, *ODD, *(f"a {name} b{name}" for name in ours.specials)]:
        ids = theirs(text).input_ids
        assert ours.prompt(text, allow_specials=True) == ids, text
        assert ours.decode(ids, skip_specials=False) == theirs.decode(ids)


class TestTraining:
    def test_every_string_comes_back(self, trained: Tokenizer) -> None:
        for text in [*SENTENCES, *ODD, "\u2028 unseen ሰላም"]:
            assert trained.decode(trained.encode(text)) == text

    def test_roles_from_names(self, trained: Tokenizer) -> None:
        assert (trained.bos, trained.eos, trained.pad, trained.unk) == (0, 1, 2, None)
        assert trained.stops == (1, trained.specials["<|end|>"])
        other = Tokenizer.train(SENTENCES, 300, ["<s>", "</s>", "[PAD]", "[MASK]"])
        assert (other.bos, other.eos, other.pad, other.mask, other.stops) == (0, 1, 2, 3, (1,))
        assert not other.templates

    def test_is_repeatable(self, trained: Tokenizer) -> None:
        assert Tokenizer.train(SENTENCES * 3, 400).fingerprint == trained.fingerprint
        assert Tokenizer.train(SENTENCES * 3, 399).fingerprint != trained.fingerprint

    def test_vocabulary_is_at_most_what_was_asked(self, trained: Tokenizer) -> None:
        assert trained.vocab == len(trained) == 400
        assert Tokenizer.train(["ab"], 400).vocab == 256 + 7

    def test_marks_stay_on_their_letters(self) -> None:
        tokenizer = Tokenizer.train(["नमस्ते दुनिया"] * 50, 600)
        assert len(tokenizer.encode("नमस्ते दुनिया")) == 2

    def test_bytes_of_tokens(self, trained: Tokenizer) -> None:
        text = " ".join(SENTENCES)
        assert b"".join(map(trained.token_bytes, trained.encode(text))) == text.encode()
        assert sorted(trained.token_bytes(number) for number in range(7, 263)) == [bytes([byte]) for byte in range(256)]
        assert trained.token_bytes(6) == b"<|end|>"
        assert trained.token_bytes(10**6) == b""

    @pytest.mark.parametrize(
        ("texts", "vocab", "specials", "says"),
        [
            (["a"], 100, ["<s>"], "257 or more"),
            (["a"], 300, ["<s>", "<s>"], "different"),
            (["a"], 300, ["<s>", ""], "different"),
            (["a"], 300, ["a"], "two or more"),
            ([], 300, ["<s>"], "no text"),
            (["", ""], 300, ["<s>"], "no text"),
        ],
    )
    def test_what_cannot_be_trained(self, texts: list[str], vocab: int, specials: list[str], says: str) -> None:
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.train(texts, vocab, specials)

    def test_texts_that_are_not_text(self) -> None:
        with pytest.raises(InputError, match="must be a string: got bytes"):
            Tokenizer.train([b"abc"], 300)  # type: ignore[list-item]
        with pytest.raises(InputError, match="D800"):
            Tokenizer.train(["ok", "bad \ud800"], 300)


class TestEnds:
    def test_bos_and_eos(self, trained: Tokenizer) -> None:
        plain = trained.encode("hello")
        assert trained.encode("hello", bos=True, eos=True) == [0, *plain, 1]
        assert trained.encode_batch(["hello", ""], bos=True) == [[0, *plain], [0]]

    def test_a_missing_one_is_an_error(self, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
        with pytest.raises(TokenizerError, match="has no bos token"):
            pairs["unigram"][0].encode("hello", bos=True)

    def test_text_must_be_text(self, trained: Tokenizer) -> None:
        for wrong in (None, 3, b"x", ["a"]):
            with pytest.raises(InputError, match="must be a string"):
                trained.encode(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"U\+DC80.*position 2"):
            trained.encode("ab\udc80")

    def test_ids_must_be_ids(self, trained: Tokenizer) -> None:
        assert trained.decode([]) == ""
        assert trained.decode([10**6]) == ""
        with pytest.raises(InputError, match="from 0 to 399"):
            trained.decode([-1])

    def test_unknown_names_are_an_error(self, trained: Tokenizer) -> None:
        with pytest.raises(TokenizerError, match=r"Did you mean '<\|end\|>'"):
            trained.encode("x", allow_specials={"<|ende|>"})
        assert trained.encode("a<|end|><|bos|>", allow_specials="<|end|>").count(6) == 1

    def test_fits(self, trained: Tokenizer) -> None:
        check_fits(400, 400)
        trained.check_fits(512)
        with pytest.raises(TokenizerError, match="ids up to 399, the model has 32"):
            trained.check_fits(32)


class TestConfiguration:
    def test_named_tokens_are_added(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        path = write("byte_level", tmp_path, pad_token="[PAD]", extra_special_tokens=["<|extra|>"])
        ours, theirs = Tokenizer.load(path), AutoTokenizer.from_pretrained(path)
        assert ours.pad == theirs.pad_token_id == ours.specials["[PAD]"]
        assert ours.specials["<|extra|>"] == theirs.convert_tokens_to_ids("<|extra|>")
        assert ours.vocab == len(theirs)

    def test_older_special_tokens_map(self, tmp_path: Path) -> None:
        path = write("byte_level", tmp_path)
        config = json.loads((path / "tokenizer_config.json").read_text())
        del config["eos_token"]
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        tokens = {"eos_token": {"content": "<|eot|>", "special": True}, "bos_token": "unused"}
        (path / "special_tokens_map.json").write_text(json.dumps(tokens))
        tokenizer = Tokenizer.load(path)
        assert tokenizer.eos == tokenizer.specials["<|eot|>"]
        assert tokenizer.bos == tokenizer.specials["<|endoftext|>"]

    def test_stops_of_generation_config(self, tmp_path: Path) -> None:
        path = write("llama3", tmp_path)
        eos = Tokenizer.load(path).eos
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, eos], "top_k": 3}))
        tokenizer = Tokenizer.load(path)
        assert tokenizer.stops == (5, eos)
        tokenizer.save(path)
        assert json.loads((path / "generation_config.json").read_text())["top_k"] == 3

    def test_copies_and_pickles(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer.load(write("llama3", tmp_path))
        for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
            assert again.prompt(SENTENCES[3]) == tokenizer.prompt(SENTENCES[3])
            assert (again.stops, again.fingerprint) == (tokenizer.stops, tokenizer.fingerprint)

    def test_the_file_alone(self, tmp_path: Path) -> None:
        path = write("llama2", tmp_path)
        alone = Tokenizer.load(path / "tokenizer.json")
        assert alone.fingerprint == Tokenizer.load(str(path)).fingerprint
        (path / "tokenizer_config.json").unlink()
        bare = Tokenizer.load(path)
        assert bare.eos is None
        assert bare.stops == ()
        assert bare.prompt("hello") == alone.prompt("hello")

    def test_the_file_decides_what_stands_around_a_text(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        for index, flags in enumerate(({"add_bos_token": False}, {"add_eos_token": True}, {"add_bos_token": None})):
            path = write("llama2", tmp_path / str(index), **flags)
            assert Tokenizer.load(path).prompt("hello") == AutoTokenizer.from_pretrained(path)("hello").input_ids

    def test_truncation_and_padding_in_the_file_do_not_count(self, tmp_path: Path) -> None:
        path = write("byte_level", tmp_path)
        state = json.loads((path / "tokenizer.json").read_text())
        plain = Tokenizer.load(path)
        state["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        (path / "tokenizer.json").write_text(json.dumps(state))
        cut = Tokenizer.load(path)
        assert cut.encode(SENTENCES[0]) == plain.encode(SENTENCES[0])
        assert cut.fingerprint == plain.fingerprint


class TestDamage:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "half written"),
            (b"{", "half written"),
            (b"{}", "half written"),
            (b"[1, 2]", "half written"),
            (b"\xff\xfe\x00", "not UTF-8"),
            (b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}', "empty"),
            (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "half written"),
            (b'{"model": {"type": "Nonsense", "vocab": {"a": 0}}}', "half written"),
            (b'{"model": {"type": "WordLevel", "vocab": {"a": 3000000000}, "unk_token": "a"}}', "ids are the most"),
        ],
    )
    def test_tokenizer_file(self, content: bytes, says: str, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.load(tmp_path)

    def test_every_truncation_is_an_error(self, tmp_path: Path) -> None:
        content = (write("byte_level", tmp_path) / "tokenizer.json").read_bytes()
        for end in range(0, len(content) - 1, len(content) // 23):
            (tmp_path / "tokenizer.json").write_bytes(content[:end])
            with pytest.raises(TokenizerError):
                Tokenizer.load(tmp_path)

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ('{"eos_token": 3}', "`eos_token` must be a string"),
            ('{"eos_token": {"text": "x"}}', "`eos_token` must be a string"),
            ('{"added_tokens_decoder": []}', "`added_tokens_decoder` must be an object"),
            ('{"added_tokens_decoder": {"x": "a"}}', "must hold token ids"),
            ('{"added_tokens_decoder": {"3": {"content": "new"}}}', "belong to different models"),
            ('{"additional_special_tokens": "x"}', "must be a list"),
            ('{"chat_template": 3}', "`chat_template`"),
            ('{"chat_template": [{"name": "x"}]}', "`name` and `template`"),
            ("[]", "JSON object"),
            ('{"eos_token": ', "not valid JSON"),
        ],
    )
    def test_configuration(self, config: str, says: str, tmp_path: Path) -> None:
        write("byte_level", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.load(tmp_path)

    def test_generation_config(self, tmp_path: Path) -> None:
        write("byte_level", tmp_path)
        for wrong in ('{"eos_token_id": "x"}', '{"eos_token_id": [1, null]}', '{"eos_token_id": -1}', "7"):
            (tmp_path / "generation_config.json").write_text(wrong)
            with pytest.raises(TokenizerError, match="generation_config"):
                Tokenizer.load(tmp_path)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match="no such file or folder"):
            Tokenizer.load(tmp_path / "nowhere")
        with pytest.raises(TokenizerError, match=r"no tokenizer\.json in"):
            Tokenizer.load(tmp_path)
        (tmp_path / "tokenizer.model").touch()
        with pytest.raises(TokenizerError, match=r"It has 'tokenizer\.model', but it is damaged"):
            Tokenizer.load(tmp_path)
        with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
            Tokenizer.load(tmp_path / "tokenizer.model")

    def test_a_folder_that_cannot_be_written(self, trained: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OpenbookError, match="file"):
            trained.save(tmp_path / "file" / "deeper")


def test_where_the_library_fails() -> None:
    """It does where a text is stripped around an added token, with a panic that is no Exception."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("a b") == [0, 1]
    for call in (tokenizer.encode, lambda text: tokenizer.encode_batch([text, "a"]), tokenizer.prompt):
        with pytest.raises(TokenizerError, match="fails on this text"):
            call("a c")


def test_threads_share_one_set_of_secret_names(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template is compiled for the secret names that texts are encoded with, whoever comes first."""
    made: list[Sealed] = []

    def slowly(*given: Any) -> Sealed:
        time.sleep(0.02)
        made.append(Sealed(*given))
        return made[-1]

    monkeypatch.setattr("openbook.text.tokenizer.Sealed", slowly)
    tokenizer = pickle.loads(pickle.dumps(trained))
    messages = [{"role": "user", "content": "hello"}]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tokenizer.chat(messages), range(8)))
    assert len(made) == 1
    assert found == [trained.chat(messages)] * 8
