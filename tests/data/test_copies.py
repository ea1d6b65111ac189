"""A text in several cuts: each copy is the same text, the epochs go through them, and a place in them is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openbook.data.copies import Copies, Sampled
from openbook.data.documents import documents
from openbook.data.loader import Loader
from openbook.data.prepare import prepare
from openbook.data.shards import Shards
from openbook.errors import ConfigError, DataError, TokenizerError
from openbook.text import Tokenizer
from openbook.train.recipe import DataPart
from tests.data.tiny import SLICE


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(documents([SLICE]), 400)


def cut(tokenizer: Tokenizer, copy: int, rate: float = 0.2) -> Sampled:
    return Sampled(tokenizer, dropout=rate, alpha=None, copy=copy)


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Shards]:
    root = tmp_path_factory.mktemp("copies")
    plain = prepare(SLICE, tokenizer, root / "text", held_out=0.1)
    return [plain, *(prepare(SLICE, cut(tokenizer, n), root / f"text-{n}", held_out=0.1) for n in (1, 2, 3))]


@pytest.fixture(scope="module")
def copies(shards: list[Shards]) -> Copies:
    plain, *others = (Loader(one, block=64, seed=n, packing="stream") for n, one in enumerate(shards))
    return Copies(plain, others)


def text_of(shards: Shards, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([int(number) for number in shards.read(0, shards.tokens)])


def test_every_copy_is_the_text_cut_in_another_way(shards: list[Shards], tokenizer: Tokenizer) -> None:
    texts = {text_of(one, tokenizer) for one in shards}
    assert len(texts) == 1
    assert len({one.fingerprint for one in shards}) == 4
    assert all(one.tokens > shards[0].tokens for one in shards[1:])
    assert all((one.held() == shards[0].held()).all() for one in shards)


def test_a_copy_is_a_function_of_its_number_and_the_text(
    shards: list[Shards], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    again = prepare(SLICE, cut(tokenizer, 2), tmp_path / "again", held_out=0.1, shard_tokens=3000)
    assert (again.read(0, 500) == shards[2].read(0, 500)).all()
    texts = list(documents([SLICE]))[:4]
    assert cut(tokenizer, 1).encode_batch(texts)[2] == cut(tokenizer, 1).encode_batch(texts[2:3])[0]


def test_each_epoch_is_one_copy_whole(copies: Copies) -> None:
    start = 0
    for epoch in range(6):
        loader = list(copies.loaders.values())[epoch % 3]
        turns, places = copies.turns(start, loader.rows)
        assert set(turns) == {epoch % 3}
        assert sorted(places % loader.rows) == list(range(loader.rows))
        found = sorted(copies.numbers(start, loader.rows) - copies.begins[epoch % 3])
        assert found == list(range(loader.rows))
        start += loader.rows
    assert copies.seen(copies.cycle) == {"copy 1": 1, "copy 2": 1, "copy 3": 1}


def test_a_batch_is_its_rows(copies: Copies) -> None:
    edge = next(iter(copies.loaders.values())).rows
    whole = copies.batch(edge - 3, 6)
    for row in range(6):
        assert (copies.batch(edge - 3 + row, 1).ids == whole.ids[row : row + 1]).all()
    assert not np.array_equal(whole.ids[0], whole.ids[3])


def test_the_place_is_kept_and_other_copies_are_refused(copies: Copies, shards: list[Shards]) -> None:
    assert copies.restore(copies.state(77)) == 77
    plain, *others = (Loader(one, block=64, seed=n, packing="stream") for n, one in enumerate(shards))
    with pytest.raises(DataError, match="other data"):
        Copies(plain, others[:2]).restore(copies.state(77))
    assert len(copies.held_out(4)) == len(plain.held_out(4)) > 0


def test_copies_of_other_text_are_refused(shards: list[Shards], tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_text("\n\n".join(list(documents([SLICE]))[:-1]))
    other = prepare(file, cut(tokenizer, 1), tmp_path / "other", held_out=0.1)
    with pytest.raises(DataError, match="one text"):
        Copies(Loader(shards[0], block=64), [Loader(other, block=64)])


def test_refusals(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="`alpha` is for Unigram"):
        Sampled(tokenizer, dropout=None, alpha=0.2, copy=1)
    for wrong in ({"dropout": 0.1, "alpha": 0.1}, {"dropout": 0.1, "copies": 0}):
        with pytest.raises(ConfigError, match=r"data\.dropout"):
            DataPart(text=("a.txt",), **wrong)
