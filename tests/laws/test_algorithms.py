"""Law 2 for text: the short algorithms of text/algorithms/ and the fast path give the same ids, merges, vocabularies.

Encoding: for every kind of tokenizer, on sentences, odd texts and anything hypothesis finds. Training: on words of the
sentences and on small random corpora, where ties abound. Unigram's scores are sums in another order: the tokens are the
same and the scores within 1e-9, but for characters that are put back at the end, which the library gives in the order
of a hash table. Each has a seeded fault.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from openbook.text import Tokenizer
from openbook.text.algorithms import bpe, unigram, wordpiece
from openbook.text.algorithms.bpe import Bpe
from openbook.text.algorithms.unigram import Unigram
from openbook.text.algorithms.whole import Whole
from openbook.text.surgery import trim
from tests.archive import archive
from tests.text.kinds import KINDS, ODD, SENTENCES, write

CUT = [kind for kind in KINDS if kind != "word_level"]
TRAINED = ("bpe", "wordpiece", "unigram")
Words = Mapping[str, int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("kinds")
    loaded = {kind: Tokenizer.load(write(kind, root / kind)) for kind in CUT}
    return loaded | {f"trained {kind}": Tokenizer.train(SENTENCES * 3, 600, kind=kind) for kind in TRAINED}


def same_ids(tokenizer: Tokenizer, text: str, whole: Whole | None = None) -> None:
    assert (whole or tokenizer.whole).encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("kind", [*CUT, *(f"trained {kind}" for kind in TRAINED)])
class TestEncoding:
    def test_sentences(self, kind: str, made: dict[str, Tokenizer]) -> None:
        for text in [*SENTENCES, *ODD, " ".join(SENTENCES)]:
            same_ids(made[kind], text)

    @given(text=st.text(max_size=40))
    def test_any_text(self, kind: str, text: str, made: dict[str, Tokenizer]) -> None:
        same_ids(made[kind], text)

    @given(parts=st.lists(st.sampled_from([*"aeinrst ", "the", "▁", "##", "<0x41>", "é", "界"]), max_size=12))
    def test_text_of_frequent_letters(self, kind: str, parts: list[str], made: dict[str, Tokenizer]) -> None:
        same_ids(made[kind], "".join(parts))


def test_added_tokens_that_take_the_spaces_beside_them() -> None:
    """In a text they are spelled otherwise than in the vocabulary, and one has the id 0."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(special_tokens=["<a>"], vocab_size=400, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"][0] |= {"special": False}
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    plain = tokenizers.AddedToken("\n", normalized=False)
    backend.add_tokens([plain, tokenizers.AddedToken("<b>", lstrip=True, rstrip=True, normalized=False)])
    for text in ("<a>", "the <b> fox", "<b>\n \n<b>\n<a>", "  <b>", "\n<a>\n"):
        same_ids(Tokenizer(backend), text)


@pytest.mark.parametrize("kind", [f"trained {kind}" for kind in TRAINED])
def test_a_fault_in_encoding_is_found(kind: str, made: dict[str, Tokenizer]) -> None:
    whole = Whole(made[kind]._sealed.twin)
    match whole.algorithm:
        case Bpe() as its:
            last = len(its.merges)
            whole.algorithm = replace(its, merges={p: (last - rank, token) for p, (rank, token) in its.merges.items()})
        case Unigram() as its:
            whole.algorithm = replace(its, tokens=[(token, score * 0.7 - 1) for token, score in its.tokens])
        case its:
            whole.algorithm = replace(its, longest=4)
    with pytest.raises(AssertionError):
        same_ids(made[kind], " ".join(SENTENCES), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_encoding_of_real_text(kind: Any) -> None:
    text = archive("pretrain/tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.train(text.split("\n\n"), 4000, kind=kind)
    same_ids(tokenizer, text[:150_000])


@pytest.mark.slow
def test_published_vocabularies() -> None:
    """On llama.cpp's own test texts; and trimmed to them, the texts are cut as before."""
    files = sorted(archive("tasks/tokenizers").rglob("*.gguf"))
    assert files
    for file in files:
        tokenizer, tests = Tokenizer.load(file), file.with_name(f"{file.name}.inp")
        texts = tests.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n") if tests.exists() else SENTENCES
        change = trim(tokenizer, texts)
        for text in texts:
            same_ids(tokenizer, text)
            assert [change.rows[number][0] for number in change.tokenizer.encode(text)] == tokenizer.encode(text)


# ------------------------------------------------------------------------------------------------ training


def counted(words: list[str]) -> Words:
    return dict(sorted(Counter(words).items()))


def fast(model: Any, trainer: Any, words: list[str]) -> dict[str, Any]:
    """What the library learns from words, as the model of its tokenizer.json."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split("\x1f", behavior="removed")
    backend.train_from_iterator(["\x1f".join(words)], trainer)
    return json.loads(backend.to_str())["model"]


def by_id(vocab: dict[str, int]) -> list[str]:
    return sorted(vocab, key=vocab.__getitem__)


def same_merges(words: list[str], vocab: int, least: int, train: Callable[..., Any] = bpe.train) -> None:
    alphabet = sorted(set("".join(words)))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=least, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    model = fast(models.BPE(), trainer, words)
    tokens, merges = train(counted(words), vocab, ["<s>", *alphabet], least=least)
    assert tokens == by_id(model["vocab"])
    assert merges == [tuple(merge) for merge in model["merges"]]


def same_pieces(words: list[str], vocab: int, least: int, train: Callable[..., Any] = wordpiece.train) -> None:
    """The library numbers `##x` in the order of a hash table, so it is given them in ours, as special tokens."""
    alphabet = sorted(set("".join(words)))
    inside = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab, min_frequency=least, special_tokens=["[UNK]", *alphabet, *inside], show_progress=False
    )
    model = fast(models.WordPiece(unk_token="[UNK]"), trainer, words)
    assert train(counted(words), vocab, ["[UNK]"], least=least) == by_id(model["vocab"])


def same_scores(words: list[str], vocab: int, train: Callable[..., Any] = unigram.train) -> None:
    model = fast(models.Unigram(), trainers.UnigramTrainer(vocab_size=vocab, show_progress=False), words)
    theirs, ours = dict(model["vocab"]), dict(train(counted(words), vocab))
    assert theirs.keys() == ours.keys()
    other = {token for token in ours if abs(ours[token] - theirs[token]) > 1e-9}
    assert all(len(token) == 1 for token in other)  # put back at the end, each with one step more
    close = pytest.approx(sorted(theirs[token] for token in other), abs=1e-9)
    assert sorted(ours[token] for token in other) == close


def corpora(count: int) -> list[tuple[list[str], int]]:
    """Words of few letters, with the size of a vocabulary for them."""
    rng = random.Random(0)
    found = []
    for _ in range(count):
        letters = "abcd"[: rng.randint(1, 4)]
        long = rng.choice([4, 12])
        words = ["".join(rng.choices(letters, k=rng.randint(1, long))) for _ in range(rng.randint(1, 30))]
        found.append((words, rng.randint(6, 60)))
    return found


def real(count: int) -> list[str]:
    """Words of a story of the archive, or of the sentences."""
    return (
        archive("pretrain/tinyshakespeare.txt").read_text(encoding="utf-8")[:count].replace(" ", "\x1f▁").split("\x1f")
    )


class TestTraining:
    def test_merges_of_small_corpora(self) -> None:
        for words, vocab in corpora(300):
            same_merges(words, vocab, 1 + vocab % 3)
            same_pieces(words, vocab, 1 + vocab % 3)

    def test_scores_of_sentences(self) -> None:
        words = " ".join(SENTENCES * 2).replace(" ", "\x1f▁").split("\x1f")
        for vocab in (250, 300, 400):
            same_scores(words, vocab)

    def test_scores_of_small_corpora(self) -> None:
        for words, vocab in corpora(60):
            same_scores([word + letter for word in words for letter in word], 4 + vocab // 3)

    @pytest.mark.slow
    def test_real_text(self) -> None:
        same_merges(real(300_000), 3000, 2)
        same_pieces(real(300_000), 3000, 2)
        same_scores(real(60_000), 800)


def on_all(same: Callable[..., None], train: Callable[..., Any]) -> None:
    for words, vocab in corpora(50):
        same(words, vocab, 1, train)


class TestFaultsInTraining:
    """Ties broken otherwise, a count that is not kept, a digamma that is a logarithm: each is found."""

    def test_ties(self) -> None:
        def other(words: Words, vocab: int, first: list[str], **options: Any) -> Any:
            return bpe.train(words, vocab, [*first[:1], *first[:0:-1]], **options)

        with pytest.raises(AssertionError):
            on_all(same_merges, other)

    def test_characters_of_a_word_list(self) -> None:
        def other(words: Words, vocab: int, specials: list[str], **options: Any) -> Any:
            return wordpiece.train(dict.fromkeys(words, 1), vocab, specials, **options)

        with pytest.raises(AssertionError):
            on_all(same_pieces, other)

    def test_a_plain_logarithm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unigram, "digamma", lambda x: unigram.math.log(x))
        with pytest.raises(AssertionError):
            same_scores(" ".join(SENTENCES).split(), 300)


def test_the_likelihood_is_near_that_of_sentencepiece(tmp_path: Path) -> None:
    """Two trainers that prune by other estimates of the same loss: the text is about as probable under both."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = [word for word in " ".join(SENTENCES * 4).split(" ") if word]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(tmp_path / "m"), vocab_size=200, character_coverage=1.0,
        add_dummy_prefix=False, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2,
        bos_id=-1, eos_id=-1, split_by_unicode_script=False, split_by_number=False,
    )  # fmt: skip
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    theirs = [(peer.id_to_piece(number), peer.get_score(number)) for number in range(peer.vocab_size())]
    ours = [("", 0.0), *unigram.train(counted(words), peer.vocab_size() - 1)]

    def nats(tokens: list[tuple[str, float]]) -> float:
        model = Unigram(tokens, unknown=0)
        return sum(score for word in words for _, _, number in model.cut(word) for score in (tokens[number][1],))

    assert nats(ours) == pytest.approx(nats(theirs), rel=0.05)
