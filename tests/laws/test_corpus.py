"""Law: a corpus is what its recipe and its files say, whatever the blocks, the order in which they are done, and who
does them; and what its steps did is counted the same in any grouping."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbook.data.corpus import compare, plan
from openbook.data.corpus.executor import Here
from openbook.data.corpus.run import build
from openbook.data.corpus.tally import KEPT, Kind, Ledger, Sample
from openbook.data.dedupe.exact import first_of
from openbook.data.documents import Document
from tests.data.corpus.dirt import recipe

pytest.importorskip("ftfy")
pytest.importorskip("py3langid")

J = TypeVar("J")
R = TypeVar("R")


class Shuffled:
    """An executor that does the jobs in an order of its own, and some of them twice."""

    workers = 1

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[J, R]]:
        for job in self.draw.sample(jobs, len(jobs)):
            if self.draw.random() < 0.3:
                function(job)
            yield job, function(job)


def seen(folder: Path) -> dict[str, Any]:
    """What training and people see of a corpus: text, tokens, counts and samples."""
    found: dict[str, Any] = {}
    for source in sorted(path.name for path in (folder / "text").iterdir()):
        lines = [line for file in sorted((folder / "text" / source).glob("*.jsonl")) for line in file.open()]
        found[f"text {source}"] = [{k: v for k, v in json.loads(line).items() if k != "line"} for line in lines]
        found[f"tokens {source}"] = (folder / "shards" / source / "tokens-00000.bin").read_bytes()
    report = json.loads((folder / "report.json").read_text())
    counts = {
        source: {
            step: {
                verb: {reason: (kind["documents"], kind["bytes"]) for reason, kind in sorted(tally[verb].items())}
                for verb in ("removed", "changed")
            }
            for step, tally in steps.items()
            if tally["documents"]
        }
        for source, steps in report["ledger"].items()
    }
    return {**found, "counts": counts, "duplicates": report["duplicates"], "bad": report["bad"]["count"]}


def made(folder: Path, size: int | None, seed: int | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    if size is not None:
        monkeypatch.setattr(plan, "blocks", lambda files, _, **more: BLOCKS(files, size, **more))
    options: dict[str, Any] = {"duplicates": {"overlap": {"words": 20, "every": 3}}}
    return seen(build(recipe(folder, **options), executor=Here() if seed is None else Shuffled(seed)))


BLOCKS = plan.blocks


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return made(tmp_path_factory.mktemp("whole"), None, None, monkeypatch)


@pytest.mark.parametrize(("size", "seed"), [(2_000, 1), (7_001, 2), (30_000, None)])
def test_blocks_and_their_order_change_nothing(
    whole: dict[str, Any], tmp_path: Path, size: int, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, size, seed, monkeypatch)
    for name, value in whole.items():
        if name.startswith("text"):
            value, found[name] = ([{**r, "file": "", "at": 0} for r in rows] for rows in (value, found[name]))
        assert found[name] == value, name


def test_a_comparison_that_forgets_other_blocks_is_found(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeded fault: documents are compared with those near them only."""

    def forgetful(digests: Any) -> Any:
        parts = [first_of(digests[at : at + 8]) + at for at in range(0, len(digests), 8)]
        return np.concatenate(parts)

    monkeypatch.setattr(compare, "first_of", forgetful)
    assert made(tmp_path, 2_000, 1, monkeypatch)["duplicates"] != whole["duplicates"]


Event = tuple[int, int, int]  # source, what happens, which document
EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 30)), max_size=24)


def ledger_of(events: Sequence[Event]) -> Ledger:
    ledger = Ledger()
    for source, what, number in events:
        document = Document(f"text {number} " * (number + 1), Path("file"), number + 1, 0)
        tally = ledger.tally(f"source {source}", "step")
        tally.came(document)
        if what == 1:
            tally.remove(document, f"reason {number % 3}", str(number))
        elif what == 2:
            tally.change(document, Document("text", document.path, document.line, 0))
    return ledger


def merged(parts: Sequence[Ledger]) -> dict[str, Any]:
    total = Ledger()
    for part in parts:
        total.merge(part)
    tree = total.to_tree()
    return {source: tree[source] for source in sorted(tree)}


@given(EVENTS, st.lists(st.integers(0, 24), max_size=4), st.randoms(use_true_random=False))
def test_a_ledger_adds_up_in_any_grouping(events: list[Event], cuts: list[int], draw: random.Random) -> None:
    edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    parts = [ledger_of(events[low:high]) for low, high in pairwise(edges)]
    draw.shuffle(parts)
    assert merged(parts) == merged([ledger_of(events)])
    assert merged([Ledger.from_tree(part.to_tree()) for part in parts]) == merged(parts)


def test_samples_by_order_of_arrival_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: the first samples are kept, and not those with the lowest hashes."""

    def first(kind: Kind, documents: int, size: int, samples: Iterable[Sample]) -> None:
        kind.documents, kind.bytes = kind.documents + documents, kind.bytes + size
        kind.samples = [*kind.samples, *samples][:KEPT]

    events = [(0, 1, number) for number in range(0, 30, 3)]
    assert merged([ledger_of(events[5:]), ledger_of(events[:5])]) == merged([ledger_of(events)])
    monkeypatch.setattr(Kind, "add", first)
    assert merged([ledger_of(events[5:]), ledger_of(events[:5])]) != merged([ledger_of(events)])
