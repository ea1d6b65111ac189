"""Mixtures: shares, warnings, held-out text by source, and what is refused. That rows are right is tests/laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.data.heldout import HeldOut
from openbook.data.loader import Loader
from openbook.data.mixture import Change, Mixture, Source
from openbook.data.shards import Shards
from openbook.errors import DataError, UsageError
from tests.data.tiny import Bytes, make


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    found = {}
    for name, texts in (("much", 90), ("some", 30), ("none held", 10)):
        folder = tmp_path_factory.mktemp("mixture")
        words = [f"{name} text number {n} of {texts}. " * 5 for n in range(texts)]
        found[name] = make(folder, words, held_out=0 if name == "none held" else 0.1)
    return found


def mix(shards: dict[str, Shards], weights: dict[str, float] | None = None, **more: Any) -> Mixture:
    sources = [
        Source(
            name=name, shards=one, weight=weights[name] if weights else None, epochs=more.pop(f"{name}_epochs", None)
        )
        for name, one in shards.items()
    ]
    return Mixture(sources, **{"block": 32, **more})


def test_shares_are_those_of_the_tokens_flattened_by_temperature(shards: dict[str, Shards]) -> None:
    tokens = {name: one.spans(held_out=False).tokens for name, one in shards.items()}
    for temperature in (1.0, 2.0, 5.0):
        powers = {name: count ** (1 / temperature) for name, count in tokens.items()}
        expected = {name: power / sum(powers.values()) for name, power in powers.items()}
        assert mix(shards, temperature=temperature).shares == pytest.approx(expected)
    assert mix(shards, temperature=1e9).shares == pytest.approx(dict.fromkeys(shards, 1 / 3))
    weights = {"much": 8.0, "some": 1.0, "none held": 0.0}
    assert mix(shards, weights, temperature=3.0).shares == pytest.approx(
        {"much": 2 / 3, "some": 1 / 3, "none held": 0.0}
    )
    assert mix(shards, weights, changes=[Change(row=0, weights={"some": 2})]).shares["some"] == 1


def test_what_is_warned_of(shards: dict[str, Shards]) -> None:
    mixture = mix(shards, {"much": 1.0, "some": 1.0, "none held": 1.0}, some_epochs=2)
    few = mixture.parts()["none held"].rows
    assert mixture.warnings(3) == []
    (used_up, often) = mixture.warnings(3 * 5 * few)
    assert "'some' has had its 2 epochs" in used_up
    assert "'none held' is read" in often
    assert mixture.seen(3 * 5 * few)["some"] == 2
    loader = Loader(shards["some"], block=32)
    assert loader.warnings(4 * loader.rows) == []
    assert "4.5 times" in loader.warnings(4 * loader.rows + loader.rows // 2)[0]
    capped = mix(shards, **{f"{name}_epochs": 1 for name in shards})
    assert sum(capped.seen(capped.rows).values()) == 3
    with pytest.raises(DataError, match=f"after {capped.rows:,} rows"):
        capped.warnings(capped.rows + 1)


def test_held_out_text_is_that_of_every_source(shards: dict[str, Shards]) -> None:
    held = mix(shards).held_out(4)
    assert set(held.parts) == {"much", "some"}
    alone = {name: HeldOut(shards[name], block=32, rows=4) for name in held.parts}
    assert held.bytes == sum(one.bytes for one in alone.values())
    batches = [batch for one in alone.values() for batch in one]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(held, batches, strict=True))
    assert mix(shards).held_out(4, limit=2).bytes < held.bytes


def test_batches_are_made_ahead(shards: dict[str, Shards]) -> None:
    mixture = mix(shards, packing="stream", document_mask=False)
    plan = [(start, 5) for start in range(0, 60, 5)]
    with mixture.ahead(plan) as batches:
        for (start, rows), batch in zip(plan, batches, strict=True):
            assert torch.equal(batch.ids, mixture.batch(start, rows).ids)
            assert batch.segments is None


def test_what_is_refused(shards: dict[str, Shards], tmp_path: Path) -> None:
    one, other = (Source(name=name, shards=shards[name]) for name in ("much", "some"))
    for sources, more, says in (
        ([], {}, "one source or more"),
        ([one, one], {}, "name of its own"),
        ([one, Source(name="w", shards=shards["some"], weight=1)], {}, "a weight, or none"),
        ([Source(name="w", shards=shards["some"], weight=-1)], {}, "0 or more"),
        ([Source(name="w", shards=shards["some"], weight=float("nan"))], {}, "0 or more"),
        ([Source(name="w", shards=shards["some"], epochs=0)], {}, "above 0"),
        ([one, other], {"temperature": 0}, "temperature"),
        ([one, other], {"changes": [Change(row=5, weights={"sume": 1})]}, "Did you mean 'some'"),
        ([one, other], {"changes": [Change(row=5, weights={"some": 0})]}, "one is above 0"),
        ([one, other], {"changes": [Change(row=5, weights={"some": 1})] * 2}, "rising rows"),
    ):
        with pytest.raises(UsageError, match=says):
            Mixture(sources, block=32, **more)  # type: ignore[arg-type]
    foreign = make(tmp_path, ["another tokenizer " * 20], Bytes(bos=False), held_out=0)
    with pytest.raises(DataError, match="with another tokenizer"):
        Mixture([one, Source(name="foreign", shards=foreign)], block=32)
    with pytest.raises(DataError, match="Source 'some': The text is smaller than one block"):
        Mixture([Source(name="some", shards=shards["some"])], block=1 << 15)
    for start, rows in ((-1, 1), (0, 0)):
        with pytest.raises(UsageError, match="row"):
            mix(shards).batch(start, rows)
    with pytest.raises(DataError, match="at most"):
        mix(shards).numbers(1 << 31, 1)
