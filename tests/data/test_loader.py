"""Batches, held-out batches, and what is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openbook.data.batch import IGNORED, Batch
from openbook.data.heldout import HeldOut
from openbook.data.loader import Loader
from openbook.data.prepare import prepare
from openbook.data.shards import Shards
from openbook.errors import DataError, UsageError
from tests.data.tiny import SLICE, Bytes, make

UNMASKED: dict[str, Any] = {"packing": "stream", "document_mask": False}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return prepare(SLICE, Bytes(), tmp_path_factory.mktemp("loader") / "out", held_out=0.1)


def test_batches_have_one_shape(shards: Shards) -> None:
    for options in ({}, {"packing": "stream"}, UNMASKED):
        loader = Loader(shards, block=64, **options)
        batch = loader.batch(loader.rows - 3, 8)
        assert batch.ids.shape == batch.targets["language"].shape == (8, 64)
        assert batch.ids.dtype == batch.targets["language"].dtype == torch.int64
        assert batch.rows == 8
        if options == UNMASKED:
            assert batch.segments is None
            assert batch.positions is None
        else:
            assert batch.segments is not None
            assert batch.positions is not None
            assert batch.segments.shape == batch.positions.shape == (8, 64)


@pytest.mark.parametrize("options", [{}, {"packing": "stream"}, UNMASKED])
def test_targets_of_an_epoch(shards: Shards, options: dict[str, Any]) -> None:
    loader = Loader(shards, block=128, **options)
    batch = loader.batch(0, loader.rows)
    assert int((batch.targets["language"] != IGNORED).sum()) == loader.targets
    text = shards.spans(held_out=False)
    counted = batch.targets["language"]
    assert counted[counted != IGNORED].bincount().tolist()[97] == int((text.read(0, text.tokens) == 97).sum())


def test_pad_is_what_was_asked_for(shards: Shards) -> None:
    batch = Loader(shards, block=64, pad=299).batch(0, 64)
    assert batch.segments is not None
    assert (batch.ids[batch.segments == 0] == 299).all()
    assert (batch.segments == 0).any()


def test_text_smaller_than_a_block_is_refused(tmp_path: Path) -> None:
    shards = make(tmp_path, ["a short text", "another"], held_out=0)
    for options in ({}, {"packing": "stream"}, UNMASKED):
        with pytest.raises(DataError, match=r"23 tokens to train on.*`block` is 64.*Give more text"):
            Loader(shards, block=64, **options)
        assert Loader(shards, block=22, **options).rows >= 1


def test_wrong_settings(shards: Shards) -> None:
    with pytest.raises(UsageError, match="`block`"):
        Loader(shards, block=1)
    with pytest.raises(UsageError, match="best-fit"):
        Loader(shards, block=64, packing="bestfit")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs packing='stream'"):
        Loader(shards, block=64, document_mask=False)
    for start, rows in ((-1, 1), (0, 0)):
        with pytest.raises(UsageError, match="row"):
            Loader(shards, block=64).batch(start, rows)
    with pytest.raises(UsageError, match="rows=0"):
        HeldOut(shards, block=64, rows=0)


def test_ahead_gives_the_same_batches(shards: Shards) -> None:
    loader = Loader(shards, block=64, seed=4)
    plan = [(start, 3) for start in range(0, 60, 3)]
    with loader.ahead(plan) as batches:
        for (start, rows), batch in zip(plan, batches, strict=True):
            assert torch.equal(batch.ids, loader.batch(start, rows).ids)


def test_ahead_stops_and_fails_cleanly(shards: Shards) -> None:
    loader = Loader(shards, block=64)
    before = threading.active_count()
    with loader.ahead((start, 2) for start in range(10**9)) as batches:
        next(batches)
    assert threading.active_count() == before, "the thread ends with the block"

    def bad() -> Iterator[tuple[int, int]]:
        yield 0, 2
        raise ValueError("a plan that breaks")

    with loader.ahead(bad()) as batches:
        next(batches)
        with pytest.raises(ValueError, match="a plan that breaks"):
            next(batches)
    assert threading.active_count() == before


def test_batch_moves_whole() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(ids=ids, segments=ids, targets={"language": ids, "value": ids.float()}).to("meta")
    assert batch.ids.device.type == "meta"
    assert batch.segments is not None
    assert batch.segments.device.type == "meta"
    assert {name: tensor.device.type for name, tensor in batch.targets.items()} == {"language": "meta", "value": "meta"}
    assert batch.positions is None
    with pytest.raises(AssertionError, match="segments"):
        Batch(ids=ids, segments=ids[:1])


# --- held-out text ------------------------------------------------------------------------------------------------


def tally(batches: HeldOut) -> dict[int, int]:
    found: dict[int, int] = {}
    for batch in batches:
        targets = batch.targets["language"]
        for number in targets[targets != IGNORED].tolist():
            found[number] = found.get(number, 0) + 1
    return found


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("block", [16, 100, 1 << 15])
def test_every_held_out_byte_is_predicted_once(tmp_path: Path, bos: bool, eos: bool, mask: bool, block: int) -> None:
    """With one token per byte, the targets that are text are exactly the bytes: bits per byte is exact."""
    shards = prepare(SLICE, Bytes(bos=bos, eos=eos), tmp_path / "out", held_out=0.1, shard_tokens=30_000)
    held = HeldOut(shards, block=block, rows=4, document_mask=mask)
    found = tally(held)
    text = {number: count for number, count in found.items() if number < 256}
    assert sum(text.values()) == held.bytes
    assert sum(found.values()) == held.tokens
    if bos or eos:
        spans = shards.spans(held_out=True)
        ids = spans.read(0, spans.tokens)
        assert held.bytes == int(spans.bytes.sum())
        assert text == {n: int((ids == n).sum()) for n in set(ids.tolist()) if n < 256}
    uniform = held.tokens * math.log(300)
    assert uniform / (held.bytes * math.log(2)) == pytest.approx(held.tokens / held.bytes * math.log2(300))


def test_held_out_batches_have_one_shape_and_repeat(shards: Shards) -> None:
    for options in ({}, UNMASKED):
        held = Loader(shards, block=64, **options).held_out(7)
        one, two = list(held), list(held)
        assert len(one) == len(held) > 2
        assert {tuple(batch.ids.shape) for batch in one} == {(7, 64)}
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(one, two, strict=True))
        assert all((batch.segments is None) == (options == UNMASKED) for batch in one)


def test_held_out_limit_takes_whole_runs(shards: Shards) -> None:
    whole = HeldOut(shards, block=64, rows=4)
    some = HeldOut(shards, block=64, rows=4, limit=whole.tokens // 3)
    assert whole.tokens // 3 <= some.tokens < whole.tokens
    assert sum(count for number, count in tally(some).items() if number < 256) == some.bytes
    assert HeldOut(shards, block=64, rows=4, limit=10**9).bytes == whole.bytes


def test_held_out_is_not_trained_on(shards: Shards) -> None:
    held, train = shards.spans(held_out=True), shards.spans(held_out=False)
    texts = [
        {shards.read(int(s), int(n)).tobytes() for s, n in zip(part.starts, part.lengths, strict=True)}
        for part in (held, train)
    ]
    assert texts[0]
    assert not texts[0] & texts[1]


def test_nothing_held_out_is_no_batches(tmp_path: Path) -> None:
    held = HeldOut(make(tmp_path, ["one text", "two"], held_out=0), block=8, rows=2)
    assert (len(held), held.bytes, held.tokens, list(held)) == (0, 0, 0, [])


def test_a_book_is_read_on_behind_its_held_out_part(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Chapter {i}. " + "It went on. " * 30 for i in range(120)))
    shards = prepare(book, Bytes(), tmp_path / "out", held_out=0.1)
    train, held = shards.spans(held_out=False), shards.spans(held_out=True)
    assert len(held) >= 1
    assert 2 <= len(train) <= len(held) + 1, "parts between two held-out ones are one run"
    assert int(train.bytes.sum() + held.bytes.sum()) == book.stat().st_size
    assert np.count_nonzero(shards.read(0, shards.tokens) == 256) == 1, "one begin of a document"
