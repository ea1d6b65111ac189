"""Near duplicates: the peer's signatures and clusters, planted copies, the S-curve, bad parameters."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from openbook.data.dedupe import near as module
from openbook.data.dedupe.near import Near, chance, choose_bands, clusters, estimate, jaccard, shingles, signatures
from openbook.data.dedupe.planted import plant, score
from openbook.errors import UsageError
from tests.archive import archive
from tests.data.tiny import SLICE
from tests.laws.test_duplicates import like_each_other


def stories() -> list[str]:
    return [json.loads(line)["text"] for line in SLICE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("near", [Near(threshold=0), Near(threshold=0, bands=20, rows=6, seed=7, shingle=3)])
def test_datasketch_gives_the_same_signatures_and_clusters(near: Near) -> None:
    sketch = pytest.importorskip("datasketch")
    texts = [text for text in plant(stories(), seed=1).texts + like_each_other(4) if len(shingles(text, near))]
    found = signatures(texts, near)
    theirs = sketch.MinHash.bulk(
        [shingles(text, near).tolist() for text in texts],
        num_perm=near.permutations, seed=near.seed, hashfunc=lambda hashed: hashed,
    )  # fmt: skip
    assert all(np.array_equal(row, one.hashvalues) for row, one in zip(found, theirs, strict=True))
    index = sketch.MinHashLSH(num_perm=near.permutations, params=(near.bands, near.rows))
    parents = list(range(len(texts)))
    for number, one in enumerate(theirs):
        index.insert(number, one)
    for number, one in enumerate(theirs):
        for other in index.query(one):
            module.unite(table := np.array(parents), np.array([[number, other]]))
            parents = table.tolist()
    assert clusters(found, near).tolist() == module._flatten(np.array(parents)).tolist()


def test_with_datasketchs_own_hash_function() -> None:
    sketch = pytest.importorskip("datasketch")
    texts, near = plant(stories()[:30], seed=1).texts, Near(threshold=0)
    sets = [{" ".join(words[at : at + 5]) for at in range(len(words) - 4)} for words in map(str.split, texts)]
    theirs = sketch.MinHash.bulk([[text.encode() for text in one] for one in sets], num_perm=128)
    hashed = [np.array([sketch.hashfunc.sha1_hash32(text.encode()) for text in one], np.uint32) for one in sets]
    ours = module.sketch(hashed, near)
    assert all(np.array_equal(row, one.hashvalues) for row, one in zip(ours, theirs, strict=True))


def test_planted_copies_are_found_and_nothing_else() -> None:
    planted = plant(stories(), seed=5, share=0.6)
    found = score(planted, clusters(signatures(planted.texts, Near()), Near()))
    assert found.removed > 80
    assert found.precision >= 0.98
    assert found.recall >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("characters", [400, 3000])
def test_planted_copies_in_books(characters: int) -> None:
    texts = []
    with archive("pretrain/classic_books.jsonl").open(encoding="utf-8") as file:
        for line in list(file)[::20]:
            book = json.loads(line)["text"]
            texts += [book[at : at + characters] for at in range(0, min(len(book), 60_000), 4_000)]
    planted = plant([text for text in texts if len(text.split()) >= 50], seed=2)
    found = score(planted, clusters(signatures(planted.texts, Near()), Near()))
    assert found.precision >= 0.98
    assert found.recall >= 0.95
    assert found.by_change["other case"] == 1


def test_a_cluster_of_everything_scores_badly() -> None:  # the seeded fault
    planted = plant(stories(), seed=5)
    assert score(planted, np.zeros(len(planted.texts), np.int64)).precision < 0.1
    assert score(planted, np.arange(len(planted.texts))).recall == 0


def test_a_cluster_is_named_by_its_first_document_and_texts_without_words_are_alone() -> None:
    one = "the quick brown fox jumps over the lazy dog and runs into the dark wood"
    texts = ["", "alone in the world, without anybody", one, "!?", "", one.upper() + "!", f"{one} again", "!?"]
    assert clusters(signatures(texts, Near()), Near()).tolist() == [0, 1, 2, 3, 4, 2, 2, 7]
    assert clusters(signatures(texts, Near()), Near(), among=np.array([1, 5, 6])).tolist() == [0, 1, 2, 3, 4, 5, 5, 7]
    assert clusters(signatures([], Near()), Near()).tolist() == []


def test_with_texts_a_pair_passes_by_its_real_similarity() -> None:
    words = [f"w{i}" for i in range(100)]
    texts = [" ".join(words), " ".join(words[:80])]  # 76 of 96 shingles
    assert jaccard(texts[0], texts[1], Near()) == pytest.approx(76 / 96)
    for threshold, found in ((0.79, [0, 0]), (0.80, [0, 1])):
        near = Near(threshold=threshold)
        assert clusters(signatures(texts, near), near, texts).tolist() == found


def test_the_estimate_is_near_the_similarity() -> None:
    near = Near(bands=128, rows=4)
    planted = plant(stories(), seed=3)
    pairs = np.array([[i, j] for i in range(120) for j in range(i) if planted.origins[i] == planted.origins[j]])
    found = estimate(signatures(planted.texts, near), pairs)
    real = [jaccard(planted.texts[i], planted.texts[j], near) for i, j in pairs]
    assert np.abs(found - real).mean() < 0.02


def test_the_chance_of_a_candidate_is_what_is_counted() -> None:
    words = np.array([f"w{i}" for i in range(200)])
    found = []
    for seed in range(300):
        draw = np.random.default_rng(seed)
        shared, ours, theirs = np.split(draw.permutation(words)[:150], [50, 100])
        texts = [" ".join(part) for part in (np.append(shared, ours), np.append(shared, theirs))]
        near = Near(shingle=1, bands=10, rows=2, threshold=0, seed=seed)  # similarity 1/3
        found.append(clusters(signatures(texts, near), near)[1] == 0)
    assert np.mean(found) == pytest.approx(chance(1 / 3, 10, 2), abs=0.08)


def test_bands_are_chosen_for_a_threshold() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.9):
        bands, rows = choose_bands(threshold, 128)
        assert bands * rows <= 128
        assert chance(threshold + 0.1, bands, rows) > 0.9
        assert chance(threshold - 0.2, bands, rows) < 0.4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit": "lines"}, "`unit` is words or characters: got 'lines'"),
        ({"bands": 0}, "`bands` is at least 1: got 0"),
        ({"threshold": 1.5}, "`threshold` is a similarity from 0 to 1: got 1.5"),
    ],
)
def test_impossible_parameters(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Near(**given)  # type: ignore[arg-type]


def test_signatures_of_another_width_are_refused() -> None:
    with pytest.raises(UsageError, match="128 numbers"):
        clusters(np.zeros((3, 64), np.uint32), Near())
