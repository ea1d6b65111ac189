"""Plans of corpora that are not there: arithmetic, and machines that are unlike and fail."""

from __future__ import annotations

import json

import pytest

from openbook.cli import main
from openbook.cli.data_plan import amount_of
from openbook.data.corpus.scale import Machines, Rates, plan, simulate
from openbook.errors import DataError, UsageError

SAME = Machines(count=4, cores=8, storage=1e15, failures=0.0, slow=0.0)


def test_a_plan_adds_up() -> None:
    rates = Rates(clean=1e6, write=1e7, tokenise=2e6, kept=0.5, unique=0.8, document=1000, token=4, compare=1e7)
    made = plan(1e12, rates, SAME, 1e8, signature=100)
    assert made["blocks"] == 10_000
    assert made["left"] == pytest.approx(4e11)
    assert made["tokens"] == pytest.approx(1e11)
    assert made["stages"]["clean"]["core_hours"] == pytest.approx(1e6 / 3600)
    assert made["stages"]["clean"]["seconds"] == pytest.approx(1e6 / 32)
    assert made["stages"]["compare"]["seconds"] == pytest.approx(5e11 / 1e7)
    assert made["seconds"] == pytest.approx(sum(stage["seconds"] for stage in made["stages"].values()))


def test_few_blocks_keep_few_cores_busy() -> None:
    made = plan(4e8, Rates(clean=1e6), SAME, 1e8, signature=100)
    assert made["stages"]["clean"]["seconds"] == pytest.approx(100)


def test_slow_storage_bounds_a_stage() -> None:
    slow = Machines(count=4, cores=8, storage=1e6, failures=0.0, slow=0.0)
    made = plan(1e9, Rates(clean=1e6), slow, 1e7, signature=100)
    assert made["stages"]["clean"]["bound"] == "storage"
    assert made["stages"]["clean"]["seconds"] > 1e9 / 1e6


def test_equal_machines_take_what_arithmetic_says() -> None:
    played = simulate(3.2e11, 1e6, SAME, 1e8)
    ideal = 3.2e11 / 1e6 / 32
    assert ideal * 0.97 < played.seconds < ideal * 1.05
    assert played.busy > 0.95
    assert (played.lost, played.again) == (0, 0)


def test_slow_and_failing_machines_cost_time_and_every_block_is_done() -> None:
    alike = simulate(1e11, 1e6, SAME, 1e8, seed=3)
    unlike = simulate(1e11, 1e6, Machines(count=4, cores=8, storage=1e15, failures=0.0, slow=0.5), 1e8, seed=3)
    failing = simulate(1e11, 1e6, Machines(count=4, cores=8, storage=1e15, failures=20.0, slow=0.0), 1e8, seed=3)
    assert unlike.seconds > alike.seconds
    assert failing.again > 0
    assert failing.lost > 0
    assert failing.seconds > alike.seconds
    assert failing.busy < alike.busy


def test_the_same_seed_plays_the_same() -> None:
    machines = Machines(count=3, cores=4, failures=5.0)
    assert simulate(1e10, 1e6, machines, 1e8, seed=7) == simulate(1e10, 1e6, machines, 1e8, seed=7)
    assert simulate(1e10, 1e6, machines, 1e8, seed=7) != simulate(1e10, 1e6, machines, 1e8, seed=8)


def test_what_cannot_be_planned() -> None:
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="`clean` of the rates"):
            Rates(clean=rate)
    with pytest.raises(UsageError, match="larger ones"):
        plan(1e13, Rates(), SAME, 1e3, signature=100)


def test_rates_of_a_report_that_is_none() -> None:
    with pytest.raises(DataError, match="not the report"):
        Rates.of({"seconds": {}})


@pytest.mark.parametrize(("text", "size"), [("10TB", 1e13), ("340 MB", 3.4e8), ("2.5gb", 2.5e9), ("12", 12.0)])
def test_sizes(text: str, size: float) -> None:
    assert amount_of(text) == size


@pytest.mark.parametrize("text", ["", "TB", "1.2.3GB", "ten", "1 XB", "-1GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="A size is"):
        amount_of(text)


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["data", "plan", "--size", "1TB", "--machines.count", "2", "--machines.cores", "4", "--plays", "1"]) == 0
    )
    assert "bound by" in capsys.readouterr().out
    assert main(["data", "plan", "--size", "1TB", "--plays", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 1e12
    assert main(["data", "plan", "--machines.count", "0"]) == 2
