"""Law 3, everything with everything: a request among others is that request alone, for every pair of what it can ask.

A covering array is made greedily: rows of one value for each factor, so that every pair of values (every triple, in the
soak) that can be is in some row. Each row is a request in an engine among mates of other kinds; it is compared, to the
last bit, with the same request in a fresh engine without prefix cache, speculation or preemption.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import pytest

from openbook.generate.engine import Engine
from openbook.generate.grammars import Regex
from openbook.generate.requests import Generation
from openbook.generate.sampling import Sampling
from tests.laws.adapters import KINDS
from tests.laws.served import emptied, engine_of, preempt, prompts_of

FACTORS: dict[str, tuple[str, ...]] = {
    "family": ("llama", "mistral", "mixtral", "mamba", "hybrid", "t5"),
    "prefix": ("cold", "hit"),
    "speculation": ("off", "lookup", "draft"),
    "structured": ("off", "regex"),
    "adapter": ("off", "on"),
    "logprobs": ("off", "3"),
    "n": ("1", "3"),
    "preempted": ("no", "yes"),
    "form": ("fp32", "int8"),
}
NAMES = list(FACTORS)
IMPOSSIBLE: dict[tuple[tuple[str, str], tuple[str, str]], str] = {
    (("family", "hybrid"), ("adapter", "on")): "made of a spec: there is no folder layout that an adapter could name",
    (("family", "t5"), ("prefix", "hit")): "its prompt is a source; the output begins with one id, which is no page",
}
ADAPTERS = {kind.case: kind for kind in KINDS if kind.name in ("llama", "mixtral", "mamba", "t5")}
TEXT = "[0-9A-F]{4,30}"
Row = tuple[str, ...]


def possible(row: Row) -> bool:
    """Whether there is such a request."""
    values = set(zip(NAMES, row, strict=True))
    return not any(set(pair) <= values for pair in IMPOSSIBLE)


def parts(row: Row, strength: int) -> Iterator[tuple[tuple[int, str], ...]]:
    """The combinations of `strength` values that a row has."""
    return combinations(enumerate(row), strength)


def covering(strength: int) -> list[Row]:
    """Rows that hold every possible combination of `strength` values; the same ones every time."""
    every = [row for row in product(*FACTORS.values()) if possible(row)]
    missing = dict.fromkeys(part for row in every for part in parts(row, strength))
    rows: list[Row] = []
    while missing:
        first = next(iter(missing))
        fixed = dict(first)
        best, most = every[0], -1
        for row in every:
            if any(row[place] != value for place, value in fixed.items()):
                continue
            new = sum(part in missing for part in parts(row, strength))
            if new > most:
                best, most = row, new
        rows.append(best)
        for part in parts(best, strength):
            missing.pop(part, None)
    return rows


def test_the_array_covers() -> None:
    rows = covering(2)
    assert rows == covering(2)
    assert len(rows) < 40
    held = {part for row in rows for part in parts(row, 2)}
    for one, other in combinations(NAMES, 2):
        for pair in product(FACTORS[one], FACTORS[other]):
            named = ((one, pair[0]), (other, pair[1]))
            found = tuple(zip((NAMES.index(one), NAMES.index(other)), pair, strict=True)) in held
            assert found != (named in IMPOSSIBLE or named[::-1] in IMPOSSIBLE)


def bytes_of(token: int) -> bytes:
    """A letter for each id from 3 on, as far as there are letters."""
    return bytes([33 + token]) if 3 <= token < 93 else b""


def engine(case: dict[str, str], root: Path, *, bare: bool = False, **more: object) -> Engine:
    """The engine of a row; `bare`: without anything that must not show."""
    speculation = "off" if bare else case["speculation"]
    made = engine_of(
        case["family"],
        form=case["form"],
        draft=speculation == "draft",
        speculation="lookup" if speculation == "lookup" else None,
        prefix_cache=not bare,
        token_bytes=bytes_of,
        **more,
    )
    name = "llama" if case["family"] == "mistral" else case["family"]
    if name in ADAPTERS:
        made.load_adapter("a", ADAPTERS[name].folder(root))
    return made


def asked(case: dict[str, str]) -> Sampling:
    """What a row asks for. With a draft model the bits are promised to greedy requests; what is drawn has the law."""
    return Sampling(
        max_tokens=12,
        temperature=0.0 if case["speculation"] == "draft" else 0.8,
        seed=11,
        grammar=Regex(TEXT) if case["structured"] == "regex" else None,
        logprobs=None if case["logprobs"] == "off" else 3,
        n=int(case["n"]),
    )


def exactly(found: list[Generation]) -> list[object]:
    """Everything that a request got, but for where its prompt was found."""
    assert all(one.finish in ("stop", "length") for one in found), [one.error for one in found]
    return [(one.choice, one.ids, one.finish, one.stopped_by, one.logprobs) for one in found]


def alone(case: dict[str, str], prompt: list[int], adapter: str | None, root: Path) -> list[object]:
    return exactly(engine(case, root, bare=True).generate([prompt], asked(case), adapter=adapter))


def among(case: dict[str, str], prompt: list[int], adapter: str | None, root: Path) -> list[object]:
    """The row's request among mates."""
    crowd = engine(case, root, tokens=24, rows=5)
    mates = prompts_of(case["family"], 3, (21, 5, 33), seed=8)
    other = "a" if adapter is None and crowd.bank is not None else None
    if case["prefix"] == "hit":
        crowd.generate([prompt[:-2]], Sampling(max_tokens=1, temperature=0.0), adapter=adapter)
    settings = [
        Sampling(max_tokens=9, temperature=1.0, seed=3, ignore_eos=True),
        Sampling(max_tokens=14, temperature=0.0, ignore_eos=True, logprobs=1),
        Sampling(max_tokens=6, temperature=0.7, n=2, seed=5, grammar=Regex("[A-Z]+")),
    ]
    before = [crowd.submit(p, s, adapter=x) for p, s, x in zip(mates[:2], settings, (None, other), strict=False)]
    crowd.step()
    job = crowd.submit(prompt, asked(case), adapter=adapter)
    before.append(crowd.submit(mates[2], settings[2]))
    steps, preempted = 0, 0
    while not crowd.idle:
        crowd.step()
        crowd.scheduler.check()
        steps += 1
        if case["preempted"] == "yes" and steps in (2, 4, 5):
            preempted += preempt(crowd, job)
    assert case["preempted"] == "no" or preempted
    assert case["prefix"] == "cold" or job.generations[0].cached == 32
    assert all(one.finish != "error" for mate in before for one in mate.generations)
    if case["speculation"] == "draft":
        assert crowd.speculator is not None
        assert crowd.speculator.tally.passes
    emptied(crowd)
    return exactly(job.generations)


def check(row: Row, root: Path) -> None:
    case = dict(zip(NAMES, row, strict=True))
    adapter = "a" if case["adapter"] == "on" else None
    ((prompt),) = prompts_of(case["family"], 1, (39,), seed=4)
    prompt[20:30] = prompt[5:15]  # so that there is something to look up
    assert among(case, prompt, adapter, root) == alone(case, prompt, adapter, root)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of adapters."""
    return tmp_path_factory.mktemp("pairs")


@pytest.mark.slow
@pytest.mark.parametrize("row", covering(2), ids="-".join)
def test_every_pair(row: Row, root: Path) -> None:
    check(row, root)


@pytest.mark.soak
def test_every_triple(root: Path) -> None:
    for row in covering(3):
        check(row, root)


def test_the_law_can_fail(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """A place too far in what a step reads after preemption must show."""
    row = ("llama", "cold", "off", "off", "off", "3", "1", "yes", "fp32")
    places = "openbook.generate.packed._places"
    real = __import__("openbook.generate.packed", fromlist=["_places"])._places
    monkeypatch.setattr(places, lambda works, counts: real(works, counts) + (len(works) > 1))
    with pytest.raises(AssertionError):
        check(row, root)
