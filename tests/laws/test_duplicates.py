"""Law 2 for the comparison of texts: the native operators give what numpy gives, bit for bit.

And what no result depends on: the order of the bands, the blocks in which signatures are made, how many of the hashes
are in memory at a time.
"""

from __future__ import annotations

import ctypes
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook.data.dedupe import lookup, near, repeats, words
from openbook.data.dedupe.near import Near
from openbook.hardware import cpu_features
from openbook.native import build
from openbook.native import minhash as native

needs_native = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: the reference does the work")

# letters, digits, marks, scripts without spaces, what is not seen, half characters, what lies behind the table
ALPHABET = "abcAB  \n.,'’é\u0301\u00ad\u200b\u200dＡß İ１世界ไทหิ\U0003d000\U000e0041🙂\x00\ud800"
texts = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters()), max_size=60)
SMALL = Near(bands=8, rows=2, threshold=0.4, reach=3)


def without_native(function: Callable[[], Any]) -> Any:
    """What `function` answers where there is no compiler."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (words, near, lookup):
            patch.setattr(module, "library", lambda: None)
        return function()


@functools.cache
def compiled(flags: tuple[str, ...]) -> ctypes.CDLL:
    """The operators for another machine than this one."""
    if "-mavx2" in flags and "AVX2" not in cpu_features():
        pytest.skip("no AVX2")
    found = build.load("minhash-law", native.SOURCES, [flags])
    assert found is not None
    return native.declared(found)


def equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def like_each_other(seed: int, count: int = 120) -> list[str]:
    """Texts of which many are near each other, some equal, some empty."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(400)]
    made = ["", "…", "a", "A."]
    while len(made) < count:
        text = draw.choices(vocabulary, k=draw.randrange(1, 80))
        for _ in range(draw.randint(1, 5)):
            made.append(" ".join(word if draw.random() > 0.04 else draw.choice(vocabulary) for word in text))
    draw.shuffle(made)
    return made


# ------------------------------------------------------------------------------------------------ native == reference


@needs_native
@given(texts, st.sampled_from(words.UNITS), st.integers(1, 14))
@settings(max_examples=120, deadline=None)
def test_units_and_ngrams(text: str, unit: str, n: int) -> None:
    found, expected = words.units(text, unit), words.units_reference(text, unit)
    assert equal((found.hashes, found.starts, found.ends), (expected.hashes, expected.starts, expected.ends))
    if len(found) >= n:
        assert np.array_equal(words.ngrams(found.hashes, n), words.ngrams_reference(found.hashes, n))


@needs_native
@pytest.mark.parametrize("flags", [None, ("-O1", "-mavx2"), ("-O1",)], ids=["own", "avx2", "plain"])
@pytest.mark.parametrize("unit", words.UNITS)
@pytest.mark.parametrize(("bands", "rows"), [(1, 1), (16, 4), (32, 4), (9, 13)])
def test_signatures_and_band_keys(
    unit: str, bands: int, rows: int, flags: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags:
        library = compiled(flags)
        monkeypatch.setattr(near, "library", lambda: library)
    given = Near(unit=unit, bands=bands, rows=rows, shingle=3)
    made = [*like_each_other(1, 40), "x" * 3000, *ALPHABET]
    signatures = near.signatures(made, given)
    assert np.array_equal(signatures, near.signatures_reference(made, given))
    assert np.array_equal(signatures, near.sketch([near.shingles(text, given) for text in made], given))
    keys = np.zeros((bands, len(made) + 3), np.uint64)
    near.band_keys(signatures, given, keys, 2)
    assert np.array_equal(keys[:, 2:-1], near.band_keys_reference(signatures, given))


@needs_native
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
def test_clusters(threshold: float) -> None:
    given = Near(bands=8, rows=2, threshold=threshold, reach=3)
    signatures = near.signatures(like_each_other(2), given)
    found = near.clusters(signatures, given)
    assert len(np.unique(found)) < len(found)
    assert np.array_equal(found, without_native(lambda: near.clusters(signatures, given)))


@needs_native
@given(st.lists(st.integers(0, 40), max_size=80), st.sets(st.integers(0, 2**64 - 1), max_size=300), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_search(units: list[int], others: set[int], n: int) -> None:
    hashes = words.mix(np.array(units, np.uint64))
    index = np.unique(np.append(words.ngrams(hashes, n)[::2], np.array(sorted(others), np.uint64)))
    found = lookup.Lookup(index, [n, n + 2]).search(hashes)
    assert np.array_equal(found, lookup.search_reference(hashes, index, np.array([n, n + 2])))
    assert found.shape[1] >= len(range(0, len(hashes) - n + 1, 2))


@needs_native
def test_more_hits_than_there_was_room_for() -> None:
    hashes = words.mix(np.arange(5000, dtype=np.uint64) % np.uint64(7))
    index = np.unique(words.ngrams(hashes, 3))
    places, lengths, numbers = lookup.Lookup(index, [3]).search(hashes)
    assert np.array_equal(places, np.arange(4998))
    assert (lengths == 3).all()
    assert np.array_equal(index[numbers], words.ngrams(hashes, 3))


@needs_native
def test_one_wrong_fold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:  # the seeded fault
    whole = words.table()
    broken = whole.copy()
    broken[ord("B")] = whole[ord("b")] + 1
    found = words.units("a B c")
    monkeypatch.setattr(words, "table", lambda: broken)
    assert not np.array_equal(found.hashes, words.units_reference("a B c").hashes)


# ------------------------------------------------------------------------------------------------ independence


def of_bands_in_order(signatures: near.Signatures, given: Near, order: list[int]) -> words.Ints:
    columns = signatures.reshape(len(signatures), given.bands, given.rows)[:, order]
    return near.clusters(np.ascontiguousarray(columns.reshape(signatures.shape)), given)


def test_clusters_do_not_depend_on_the_order_of_the_bands() -> None:
    signatures = near.signatures(like_each_other(3), SMALL)
    found = near.clusters(signatures, SMALL)
    for seed in range(5):
        order = random.Random(seed).sample(range(SMALL.bands), SMALL.bands)
        assert np.array_equal(found, of_bands_in_order(signatures, SMALL, order))


def test_comparing_with_the_root_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:  # the seeded fault
    def faulty(keys: Any, order: Any, signatures: Any, given: Near, parents: Any) -> None:
        for pairs in near.candidates(keys, order, given.reach):
            for left, right in pairs.tolist():
                one, other = near.root(parents, left), near.root(parents, right)
                if (signatures[one] == signatures[other]).sum() >= given.least:  # depends on who was joined before
                    parents[max(one, other)] = min(one, other)

    monkeypatch.setattr(near, "join", faulty)
    signatures = near.signatures(like_each_other(3), SMALL)
    orders = [random.Random(seed).sample(range(SMALL.bands), SMALL.bands) for seed in range(5)]
    assert len({of_bands_in_order(signatures, SMALL, order).tobytes() for order in orders}) > 1


@given(st.integers(1, 50), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_signatures_do_not_depend_on_the_blocks(size: int, seed: int) -> None:
    made = like_each_other(seed, 50)
    blocks = [near.signatures(made[at : at + size], SMALL) for at in range(0, len(made), size)]
    assert np.array_equal(near.signatures(made, SMALL), np.concatenate(blocks))


@given(st.lists(st.integers(0, 12), max_size=80), st.integers(1, 30), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_repeats_do_not_depend_on_what_is_in_memory(values: list[int], together: int, above: int) -> None:
    hashes = words.mix(np.array(values, np.uint64))  # 0 stays 0: never a repetition
    counts = {value: values.count(value) for value in values}
    expected = [
        value != 0 and (counts[value] > above if above else value in values[:place])
        for place, value in enumerate(values)
    ]
    assert repeats.repeated(hashes, above=above, together=together).tolist() == expected
