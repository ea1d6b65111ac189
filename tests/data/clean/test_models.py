"""The two models of good text: byte n-grams beside a short reference, and the classifier; their files, their verb."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from openbook.cli import main
from openbook.data.clean import grams
from openbook.data.clean.classify import Classifier, Quality, area, features
from openbook.data.clean.classify import train as train_classifier
from openbook.data.clean.grams import Grams, Perplexity
from openbook.data.clean.rules import C4
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import ConfigError, DataError, OpenbookError

SOURCE = random.Random(5)
TALE = "the river ran slowly past old houses while people sat in warm evening light and talked of many things"
WORDS = TALE.split()
GOOD = [" ".join(SOURCE.choices(WORDS, k=60)) + "." for _ in range(60)]
BAD = ["".join(SOURCE.sample(text, len(text))) for text in GOOD]


class Reference:
    """Interpolated Kneser-Ney (Chen and Goodman 1999, section 4.1.6) as one would write it down."""

    def __init__(self, texts: list[bytes], order: int) -> None:
        self.order = order
        streams = [b"\n" * order + text for text in texts]
        grams = Counter(s[i : i + order] for s in streams for i in range(len(s) - order + 1))
        self.counts: dict[int, Counter[bytes]] = {order: grams}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.discount, self.total, self.kinds = {}, defaultdict(int), defaultdict(int)
        for n, counts in self.counts.items():
            once, twice = (sum(count == k for count in counts.values()) for k in (1, 2))
            self.discount[n] = min(0.9, max(0.1, once / max(1, once + 2 * twice)))
            for gram, count in counts.items():
                self.total[gram[:-1]] += count
                self.kinds[gram[:-1]] += 1

    def chance(self, context: bytes, byte: bytes) -> float:
        n = len(context) + 1
        below = self.chance(context[1:], byte) if context else 1 / 256
        if context not in self.total:
            return below
        kept = max(0.0, self.counts[n][context + byte] - self.discount[n]) if context + byte in self.counts[n] else 0.0
        return (kept + self.discount[n] * self.kinds[context] * below) / self.total[context]

    def perplexity(self, text: bytes) -> float:
        padded = b"\n" * (self.order - 1) + text
        chances = [
            self.chance(padded[i : i + self.order - 1], padded[i + self.order - 1 :][:1]) for i in range(len(text))
        ]
        return math.exp(-sum(map(math.log, chances)) / len(text))


@pytest.mark.parametrize("order", [2, 3, 5])
def test_perplexity_is_the_references(order: int) -> None:
    model = grams.train(GOOD, order=order, held_out=10**9)
    reference = Reference([text.encode() for text in GOOD], order)
    for text in (GOOD[3], BAD[3], "the old river", "Ünïcode \0 x", "zzzzzz", "\n\n\nthe"):
        assert model.perplexity(text) == pytest.approx(reference.perplexity(text.encode()), rel=1e-4)


def test_blocks_do_not_change_the_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grams.train(GOOD)
    whole = [model.perplexity(text) for text in (GOOD[0], BAD[0], "")]
    monkeypatch.setattr(grams, "BLOCK", 7)
    assert [model.perplexity(text) for text in (GOOD[0], BAD[0], "")] == pytest.approx(whole, rel=1e-5)
    assert whole[2] == 1.0


def test_what_surprises_goes(tmp_path: Path) -> None:
    grams.train(GOOD, held_out=5).save(tmp_path / "m.npz")
    step = Perplexity(model=tmp_path / "m.npz", percentile=100, lowest=1.2)
    kept = step(Document(GOOD[4], Path("a"), 1, 1))  # the fifth: held out
    assert isinstance(kept, Document)
    assert 1.2 < kept.meta["perplexity"] < 3
    high = step(Document(BAD[4], Path("a"), 1, 1))
    assert isinstance(high, Removed)
    assert high.reason == "perplexity: high"
    low = Perplexity(model=tmp_path / "m.npz", percentile=None, lowest=300.0)(Document("the", Path("a"), 1, 1))
    assert isinstance(low, Removed)
    assert low.reason == "perplexity: low"


def test_a_hash_table_finds_what_it_holds_and_nothing_else() -> None:
    keys = np.unique(np.random.default_rng(0).integers(0, 2**40, 5000).astype(np.uint64))
    numbers = np.arange(len(keys), dtype=np.float32)
    table = grams._Table.of(keys, -numbers, numbers)
    assert (table.slots["weight"][table.find(keys)] == numbers).all()
    others = np.setdiff1d(np.arange(10**6, 10**6 + 5000, dtype=np.uint64), keys)
    assert (table.find(others) == -1).all()


# ------------------------------------------------------------------------------------------------ the classifier


def test_the_classifier_tells_good_from_bad() -> None:
    other = [" ".join(SOURCE.choices([word[::-1] for word in WORDS], k=60)) for _ in range(60)]
    classifier, report = train_classifier(GOOD, other)
    assert (report.good, report.bad, report.judged) == (60, 60, 12)
    assert report.area == report.accuracy == 1.0
    assert classifier.score(GOOD[0]) > 0.5 > classifier.score(other[0])
    assert classifier.score("") == pytest.approx(classifier.score("?!"))


def test_the_same_examples_give_the_same_classifier() -> None:
    first, second = (train_classifier(GOOD, BAD, seed=3)[0] for _ in range(2))
    assert (first.weights == second.weights).all()
    assert (first.slope, first.offset) == (second.slope, second.offset)


def test_scores_mean_what_they_say() -> None:
    """Classes that overlap: among documents with score p, about p are good."""
    source = random.Random(1)

    def text(good: bool) -> str:
        share = 0.6 if good else 0.4
        return " ".join(
            source.choice(["sun", "sea"]) if source.random() < share else source.choice(["rain", "fog"])
            for _ in range(12)
        )

    made = {good: [text(good) for _ in range(700)] for good in (True, False)}
    classifier, report = train_classifier(made[True], made[False])
    assert 0.65 < report.area < 0.95
    assert report.error < 0.23
    scores = np.array([classifier.score(text(good)) for good in (True, False) for _ in range(600)])
    truth = np.repeat([1, 0], 600)
    for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 1.0)):
        inside = (scores >= low) & (scores < high)
        assert abs(scores[inside].mean() - truth[inside].mean()) < 0.12


def test_the_area_under_the_curve_by_hand() -> None:
    assert area(np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1])) == 1.0
    assert area(np.array([4.0, 3, 2, 1]), np.array([0, 0, 1, 1])) == 0.0
    assert area(np.array([1.0, 1, 1, 2]), np.array([0, 1, 0, 1])) == 0.75


def test_features_are_words_and_pairs_in_lower_case() -> None:
    places, amounts = features("Red red BLUE.")
    assert len(places) == 4  # red, blue, red red, red blue
    assert amounts.max() == pytest.approx(math.sqrt(2) / math.sqrt(5), rel=1e-5)
    other, _ = features("  red, red; blue ")
    assert (places == other).all()
    assert set(features("blue")[0]) < set(places)
    assert len(features("…")[0]) == 1  # bytes beyond ASCII are letters
    assert len(features(" .,")[0]) == 0


def test_files_are_read_back_and_others_refused(tmp_path: Path) -> None:
    classifier = train_classifier(GOOD, BAD)[0]
    classifier.save(tmp_path / "q.npz")
    grams.train(GOOD).save(tmp_path / "p.npz")
    assert Classifier.load(tmp_path / "q.npz").score(GOOD[1]) == classifier.score(GOOD[1])
    assert Grams.load(tmp_path / "p.npz").perplexity(GOOD[1]) == grams.train(GOOD).perplexity(GOOD[1])
    with pytest.raises(DataError, match="a model of perplexity, not one of quality"):
        Classifier.load(tmp_path / "p.npz")
    with pytest.raises(DataError, match="train it first"):
        Grams.load(tmp_path / "none.npz")
    content = (tmp_path / "q.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a zip", content.replace(b"places", b"plaices")):
        (tmp_path / "d.npz").write_bytes(damaged)
        with pytest.raises(OpenbookError, match=r"d\.npz"):
            Classifier.load(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", a=np.array([object()], dtype=object))
    with pytest.raises(DataError):
        Classifier.load(tmp_path / "e.npz")


def test_a_file_that_is_trained_anew_is_read_anew(tmp_path: Path) -> None:
    """One process may train, filter, train and filter again: with what lies in the file, not with what lay there."""
    path, document = tmp_path / "model.npz", Document(GOOD[0], Path("some"), 1, 0)
    step = Quality(model=path)
    for good, bad, stays in ((GOOD, BAD, True), (BAD, GOOD, False)):
        train_classifier(good, bad)[0].save(path)
        assert isinstance(step(document), Removed) != stays
    words = tmp_path / "words.txt"
    rule = C4(bad_words=words, terminal_punctuation=False, min_sentences=0)
    for word, stays in (("zebra", True), (WORDS[0], False)):
        words.write_text(word)
        text = Document(TALE, Path("some"), 1, 0)
        assert isinstance(rule(text), Removed) != stays


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(DataError, match="got 3 good and 60 bad"):
        train_classifier(GOOD[:3], BAD)
    with pytest.raises(DataError, match="No text"):
        grams.train([])
    with pytest.raises(ConfigError, match="2 to 8"):
        grams.train(GOOD, order=9)


def test_the_verb_writes_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, texts in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.txt").write_text("\n<|endoftext|>\n".join(texts))
    out = tmp_path / "q.npz"
    assert main(["data", "classifier", str(tmp_path / "good.txt"), str(tmp_path / "bad.txt"), "--out", str(out)]) == 0
    assert "60 good and 60 bad" in capsys.readouterr().out
    step = Quality(model=out)
    kept = step(Document(GOOD[0], Path("a"), 1, 1))
    assert isinstance(kept, Document)
    assert kept.meta["quality"] > 0.5
    removed = step(Document(BAD[0], Path("a"), 1, 1))
    assert isinstance(removed, Removed)
    assert removed.reason == "quality"


def test_the_verb_writes_a_model_of_perplexity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.txt").write_text("\n<|endoftext|>\n".join(GOOD))
    out = tmp_path / "p.npz"
    assert main(["data", "perplexity", str(tmp_path / "good.txt"), "--out", str(out), "--order", "4"]) == 0
    assert "half of the good text is below" in capsys.readouterr().out
    model = Grams.load(out)
    assert len(model.tables) == 4
    assert model.perplexity(GOOD[0]) < model.at_percentile(100) < model.perplexity(BAD[0])
