"""Law: the native engine gives the ids, and trains the merges, of the `tokenizers` library.

Over every published split pattern, vocabularies whose merges follow no order, texts of unlike things side by side,
added tokens of all kinds, and real text. Seeded faults: two ranks exchanged, one character of another kind, ties
broken the other way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from openbook.data.documents import documents
from openbook.native import bpe
from openbook.text import characters, engine, split
from openbook.text.engine import Engine, native_encoder, train_merges
from openbook.text.training import SPECIALS, train_bpe
from tests.archive import archive
from tests.text.patterns import PARTS, PATTERNS, from_ranks, pre_tokenizer, texts, tokenizer, vocabulary

pytestmark = pytest.mark.skipif(bpe.library() is None, reason="no compiler")


def differing(backend: Tokenizer, given: Sequence[str], native: bpe.Encoder | None = None) -> list[str]:
    """The texts to which the native engine gives other ids; those that it leaves to the library are none of them."""
    native = native or native_encoder(backend)
    assert native is not None
    theirs = [found.ids for found in backend.encode_batch_fast(list(given), add_special_tokens=False)]
    ours = [native.encode(text.encode()) for text in given]
    return [t for t, ids, other in zip(given, ours, theirs, strict=True) if ids is not None and ids.tolist() != other]


@pytest.mark.parametrize("name", PATTERNS)
def test_ids_are_equal(name: str) -> None:
    for seed, options in enumerate(({}, {"whole": True}, {"missing": 3})):
        assert differing(tokenizer(name, seed, **options), [*texts(seed, 60), *PARTS, ""]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_ids_are_equal_at_length(name: str) -> None:
    for seed in range(3, 8):
        assert differing(tokenizer(name, seed, 3000, whole=seed % 2 == 1), list(texts(seed, 200, 200))) == []


def test_exchanged_ranks_are_found() -> None:
    backend = tokenizer("ours", 1)
    state = json.loads(backend.to_str())
    merges = state["model"]["merges"]
    merges[:40] = merges[:40][::-1]
    assert differing(backend, list(texts(1, 60)), native_encoder(Tokenizer.from_str(json.dumps(state))))


def test_a_character_of_another_kind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = characters.values

    def values(name: str) -> Any:
        found = right(name).copy()
        if name == "category":
            found[ord("a")] = characters.CATEGORIES.index("Nd")
        return found

    monkeypatch.setattr(characters, "values", values)
    monkeypatch.setattr(split, "compile_pattern", split.compile_pattern.__wrapped__)  # nothing remembered
    assert differing(tokenizer("ours", 1), [*texts(1, 60), *PARTS])


ADDED = [
    AddedToken("<a>"), AddedToken("<a>b", normalized=False), AddedToken("<|end|>", special=True),
    AddedToken("   ", normalized=False), AddedToken("  "), AddedToken("’s"), AddedToken(".", normalized=True),
]  # fmt: skip
SWALLOWING = [AddedToken("[x]", lstrip=True), AddedToken("the", single_word=True), AddedToken("\n\n", rstrip=True)]


@pytest.mark.parametrize("swallowing", [[], SWALLOWING])
@pytest.mark.parametrize("space", [False, True])
def test_added_tokens(swallowing: list[AddedToken], space: bool) -> None:
    backend = tokenizer("gpt2", 2)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.add_tokens([*ADDED, *swallowing])
    names = [token.content for token in backend.get_added_tokens_decoder().values()]
    given = [text.replace("1", names[n % len(names)]).replace("a", "<a>") for n, text in enumerate(texts(3, 150))]
    assert differing(backend, [*given, "", "<a>", "<a><a>b", " ", "\t", "x<|end|>y"]) == []


@pytest.mark.parametrize("name", ["qwen2", "ours"])
def test_composed_text(name: str) -> None:
    """A text that NFC may change is left to the library; most are not."""
    backend = tokenizer(name, 4)
    backend.normalizer = normalizers.NFC()
    native = native_encoder(backend)
    assert native is not None
    given = [chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000]
    assert differing(backend, [*given, *texts(5, 100), *PARTS], native) == []
    assert differing(backend, [f"a{char}\u0301" for char in given], native) == []
    plain = ["Grüße, naïve Füße: 5 €", "Привет, мир", "你好，世界", "日本語のテキスト", "한국어", "γειά σου", "😀 ok"]
    assert all(native.encode(text.encode()) is not None for text in plain)


def test_what_is_not_known_is_left_to_the_library() -> None:
    odd: list[Tokenizer] = []
    for change in ("dropout", "lower", "words", "lazy", "behind", "suffix", "bytes"):
        backend = tokenizer("gpt2", 6)
        if change == "lower":
            backend.normalizer = normalizers.Lowercase()
        elif change == "words":
            backend.pre_tokenizer = pre_tokenizers.Whitespace()
        elif change in ("lazy", "behind"):
            pattern = {"lazy": r"\p{L}+?x|\s+", "behind": r"(?<!a)\p{L}+|\s+"}[change]
            step = pre_tokenizers.Split(engine.tokenizers.Regex(pattern), "isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel(False, use_regex=False)])
        else:
            state = json.loads(backend.to_str())
            state["model"] |= {"dropout": {"dropout": 0.5}, "suffix": {"end_of_word_suffix": "</w>"}}.get(change, {})
            if change == "bytes":
                state["model"]["unk_token"] = state["model"]["vocab"].popitem()[0]
                state["model"]["vocab"] = {t: n for t, n in state["model"]["vocab"].items() if t != "a"}
                state["model"]["merges"] = []
            backend = Tokenizer.from_str(json.dumps(state))
        odd.append(backend)
    assert [native_encoder(backend) for backend in odd] == [None] * len(odd)


def test_a_pattern_that_asks_too_much_is_left_to_the_library() -> None:
    backend = Tokenizer(vocabulary(1, 50))
    step = pre_tokenizers.Split(engine.tokenizers.Regex(r"\s*\s*\s*\s*\s*\s*x|a"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel(False, use_regex=False)])
    native = native_encoder(backend)
    assert native is not None
    assert native.encode(b" " * 20_000) is None
    assert native.encode(b"a   x") is not None


@pytest.mark.parametrize("run", ["a", " ", "\n", "'", "é", "😀", "a\u0301", "1", "the ", ".\n"])
def test_long_runs(run: str) -> None:
    """Of one thing, with and without a pattern to part them; what follows no order is merged in order all the same."""
    for name in ("none", "ours", "o200k"):
        assert differing(tokenizer(name, 7), [run * 3000]) == []


@pytest.mark.slow
def test_a_megabyte_without_a_border() -> None:
    backend = tokenizer("none", 8)
    native = native_encoder(backend)
    assert native is not None
    assert differing(backend, ["a" * 1_000_000, "the " * 250_000, " " * 1_000_000], native) == []


def test_threads_do_not_matter() -> None:
    native = native_encoder(tokenizer("cl100k", 9))
    assert native is not None
    given = [text.encode() for text in texts(10, 400, 400)]
    alone = native.encode_many(given, 1)
    assert sum(map(len, given)) > 3 * bpe.WORTH_A_THREAD
    for threads in (2, 3):
        for row, other in zip(native.encode_many(given, threads), alone, strict=True):
            assert np.array_equal(row, other)


def test_one_and_many_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and arrays, with and without the native engine, where some texts are left to the library."""
    backend = tokenizer("ours", 11)
    backend.add_tokens(SWALLOWING)
    given = [*texts(12, 40), "", "a [x] b", "the end", "", "\n\n"]
    with_native = Engine(backend)
    ids, ends = with_native.encode_arrays(given)
    rows = [ids[start:end].tolist() for start, end in pairwise(ends)]
    assert rows == with_native.encode_batch(given) == [with_native.encode(text) for text in given]
    monkeypatch.setattr(bpe, "library", lambda: None)
    without = Engine(backend)
    assert rows == without.encode_batch(given) == [without.encode(text) for text in given]
    assert np.array_equal(without.encode_arrays(given)[0], ids)
    assert [len(part) for part in without.encode_arrays([])] == [0, 1]


# ------------------------------------------------------------------------------------------------ training


def trained_by_both(given: Sequence[str], vocab: int, specials: Sequence[str], least: int = 2) -> tuple[Any, Any]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer("ours")
    ours = train_merges(given, json.loads(backend.to_str())["pre_tokenizer"], vocab, least, specials)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=least,
        special_tokens=list(specials),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(given, trainer)
    model = json.loads(backend.to_str())["model"]
    return ours, (model["vocab"], [tuple(merge) for merge in model["merges"]])


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_equal(seed: int) -> None:
    """Short texts over few parts: many ties, and tokens that several pairs can make."""
    given = list(texts(seed, 150))
    for vocab, specials in ((2000, ()), (700, ("<|end|>", "the", "'s", " the")), (260, ("<a>",))):
        ours, theirs = trained_by_both(given, vocab, specials)
        assert ours == theirs


def test_a_trained_tokenizer_is_the_same_file_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(texts(5, 150))
    for specials, closed in ((SPECIALS, True), (("<|end|>", "the", " a"), False)):
        with_native = train_bpe(iter(given), 900, specials, closed).to_str(pretty=True)
        with monkeypatch.context() as patch:
            patch.setattr(bpe, "library", lambda: None)
            assert train_bpe(iter(given), 900, specials, closed).to_str(pretty=True) == with_native


def test_training_in_blocks_and_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(texts(6, 600, 300))
    assert sum(len(text.encode()) for text in given) > 3 * bpe.WORTH_A_THREAD
    step = json.loads(tokenizer("ours", 1).to_str())["pre_tokenizer"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = train_merges(given, step, 600, 2, ())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert train_merges(given, step, 600, 2, ()) == alone
    monkeypatch.setattr(engine, "BLOCK", 1000)
    assert train_merges(iter(given), step, 600, 2, ()) == alone


@pytest.mark.slow
def test_merges_of_real_text_are_equal() -> None:
    given = list(documents(archive("pretrain/onestop_english.jsonl")))
    ours, theirs = trained_by_both(given, 12_000, ("<|bos|>", "<|eos|>"))
    assert ours == theirs


def test_ties_broken_the_other_way_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bpe.Counter.train
    monkeypatch.setattr(
        bpe.Counter,
        "train",
        lambda self, vocab, least, specials, ids: right(self, vocab, least, specials, ids[::-1].copy()),
    )
    ours, theirs = trained_by_both(list(texts(1, 150)), 500, ())
    assert ours != theirs


# ------------------------------------------------------------------------------------------------ real text


def plans(name: str) -> list[tuple[str, list[int]]]:
    """Text and ids of tiktoken's own tests."""
    found = []
    for plan in archive("tasks/tokenizers/tiktoken/TestPlans.txt").read_text(encoding="utf-8").split("\n\n"):
        head, _, rest = plan.strip().partition("\nSample: ")
        sample, _, ids = rest.rpartition("\nEncoded: ")
        if head == f"EncodingName: {name}":
            found.append((sample, json.loads(ids)))
    return found


FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}
PUBLISHED = [
    ("r50k_base", "gpt2", {"<|endoftext|>": 50256}),
    ("cl100k_base", "cl100k", {"<|endoftext|>": 100257} | FIM),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern", "specials"), PUBLISHED)
def test_published_vectors_and_documents(name: str, pattern: str, specials: dict[str, int]) -> None:
    backend = Tokenizer(from_ranks(archive(f"tasks/tokenizers/tiktoken/{name}.tiktoken"), specials))
    backend.pre_tokenizer = pre_tokenizer(pattern)
    backend.add_special_tokens(list(specials))
    native = native_encoder(backend)
    assert native is not None
    vectors = plans(name)
    ours = [native.encode(text.encode()) for text, _ in vectors]
    assert len(vectors) > 50
    assert [ids if ids is None else ids.tolist() for ids in ours] == [ids for _, ids in vectors]
    assert differing(backend, list(documents(archive("pretrain/african_storybook_ccby.jsonl"))), native) == []
