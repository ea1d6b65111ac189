"""Published vocabularies of full size: the vectors that came with them, and their libraries over odd and real text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from openbook.text import Tokenizer
from openbook.text.formats import gguf, ranks
from tests.archive import archive
from tests.text.formats import layouts
from tests.text.formats.test_sentencepiece import assert_equal_ids


def soaked(*names: str) -> list[Any]:
    """Parameters of the long run."""
    return [pytest.param(name, marks=pytest.mark.soak) for name in names]


SEPARATOR = "\n__ggml_vocab_test__\n"
# Vectors, the vocabulary that they are run with, and the split where that is another's: of the other vectors in the
# archive (chameleon, command-r, deepseek-llm, deepseek-r1-qwen, llama-bpe, qwen2, refact, roberta-bpe, starcoder) it
# holds no vocabulary.
VECTORS = [
    ("bert-bge", "bert-bge", None),
    ("deepseek-coder", "deepseek-coder", None),
    ("falcon", "falcon", None),
    ("gpt-2", "gpt-2", None),
    ("phi-3", "phi-3", None),
    ("llama-spm", "phi-3", None),
    ("mpt", "gpt-neox", "mpt"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vocabulary", "pre"), VECTORS)
def test_vectors_of_llama_cpp(name: str, vocabulary: str, pre: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = archive("tasks/tokenizers/llama.cpp")
    read = gguf.read_header
    if pre:
        monkeypatch.setattr(gguf, "read_header", lambda path, prefix: {**read(path, prefix), "ggml.pre": pre})
    tokenizer = Tokenizer.load(folder / f"ggml-vocab-{vocabulary}.gguf")
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode("utf-8").split(SEPARATOR)
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(texts) == 47
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, allow_specials=True) == list(map(int, line.split())), text


def plans() -> Iterator[tuple[str, str, list[int]]]:
    """(encoding, text, ids) of the test plans."""
    text = (archive("tasks/tokenizers/tiktoken") / "TestPlans.txt").read_text(encoding="utf-8")
    for plan in text.split("EncodingName: ")[1:]:
        name, rest = plan.split("\nSample: ", 1)
        sample, ids = rest.rsplit("\nEncoded: ", 1)
        yield name, sample, json.loads(ids)


class TestRanks:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "count"), [("r50k_base", 67), ("cl100k_base", 75)])
    def test_plans(self, name: str, count: int) -> None:
        tokenizer = Tokenizer.load(archive("tasks/tokenizers/tiktoken") / f"{name}.tiktoken")
        mine = [(sample, ids) for encoding, sample, ids in plans() if encoding == name]
        assert len(mine) == count
        for sample, ids in mine:
            assert tokenizer.encode(sample, allow_specials=True) == ids, sample

    @pytest.mark.slow
    def test_plans_of_p50k(self, tmp_path: Path) -> None:
        """Its ranks are r50k's and 24 runs of spaces, which the published hash confirms."""
        path = archive("tasks/tokenizers/tiktoken") / "r50k_base.tiktoken"
        table = ranks.parse(path.read_bytes(), path)
        table |= {b" " * count: 50255 + count for count in range(2, 26)}
        assert ranks.fingerprint(table) in ranks.PUBLISHED
        (tmp_path / "p50k").write_bytes(layouts.rank_file(table))
        fim = {"<|fim_prefix|>": 50281, "<|fim_middle|>": 50282, "<|fim_suffix|>": 50283}
        base = Tokenizer.load(tmp_path / "p50k")
        edit = Tokenizer.load(tmp_path / "p50k", specials={"<|endoftext|>": 50256, **fim})
        mine = [plan for plan in plans() if plan[0] in ("p50k_base", "p50k_edit")]
        assert len(mine) == 67 + 72
        for encoding, sample, ids in mine:
            tokenizer = base if encoding == "p50k_base" else edit
            assert tokenizer.encode(sample, allow_specials=True) == ids, sample

    @pytest.mark.soak
    def test_against_tiktoken_and_gpt2(self) -> None:
        import tiktoken

        folder = archive("tasks/tokenizers")
        path = folder / "tiktoken" / "cl100k_base.tiktoken"
        table = ranks.parse(path.read_bytes(), path)
        pattern = ranks.PUBLISHED[ranks.fingerprint(table)].pattern
        theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=table, special_tokens={})
        ours = Tokenizer.load(path)
        older, oldest = Tokenizer.load(folder / "tiktoken" / "r50k_base.tiktoken"), Tokenizer.load(folder / "gpt2")
        for text in layouts.texts(1, 3000):
            assert ours.encode(text) == theirs.encode_ordinary(text), text
            assert older.encode(text) == oldest.encode(text), text

    @pytest.mark.slow
    def test_small_ones(self) -> None:
        import tiktoken

        for name in ("tiktoken_small.model", "tiktoken_small_llama4.model"):
            path = archive("tasks/tokenizers/torchtune") / name
            table = ranks.parse(path.read_bytes(), path)
            theirs = tiktoken.Encoding("x", pat_str=layouts.PATTERN, mergeable_ranks=table, special_tokens={})
            ours = Tokenizer.load(path, pattern=layouts.PATTERN)
            for text in layouts.texts(2, 100):
                assert ours.encode(text) == theirs.encode_ordinary(text), text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchtune/m", *soaked("sentencepiece/test_model", "sentencepiece/test_ja_model")])
def test_unigram_models(name: str) -> None:
    from sentencepiece import SentencePieceProcessor

    path = archive(f"tasks/tokenizers/{name}.model")
    ours, theirs = Tokenizer.load(path), SentencePieceProcessor(model_file=str(path))
    lines = archive("tasks/tokenizers/sentencepiece/botchan.txt").read_text(encoding="utf-8").splitlines()[:500]
    for text in [*lines, *layouts.texts(3, 3000)]:
        assert_equal_ids(ours, theirs, text)


def mistral(name: str) -> Path:
    """A vocabulary that comes with mistral-common."""
    return Path(str(resources.files("mistral_common") / "data" / name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mistral_instruct_tokenizer_240323.model.v3",
        *soaked("tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"),
    ],
)
def test_models_of_mistral(name: str) -> None:
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    ours, theirs = Tokenizer.load(mistral(name)), SentencePieceTokenizer(mistral(name))
    for text in layouts.texts(4, 2000, ["[INST]", "[REF]", "[/REF]", "[REFERENCE_DOC_19]", "[REF]<0x41>"]):
        assert ours.encode(text, bos=True, eos=True) == theirs.encode(text, bos=True, eos=True), text
    assert ours.vocab == theirs.n_words
    assert (ours.bos, ours.eos, ours.unk) == (theirs.bos_id, theirs.eos_id, theirs.unk_id)


@pytest.mark.soak
def test_tekken() -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    path = mistral("tekken_240911.json")
    ours, theirs = Tokenizer.load(path), Tekkenizer.from_file(path)
    for text in layouts.texts(5, 2000):
        assert ours.encode(text, bos=True, eos=True) == theirs.encode(text, bos=True, eos=True), text
    pieces: list[Any] = [theirs.id_to_piece(number) for number in range(1000)]
    assert [ours.token(number) for number in range(1000)] == pieces
    assert ours.vocab == theirs.n_words
