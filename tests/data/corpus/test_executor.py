"""Who does the jobs: all are done once, the first error stops the rest, a killed worker is an error that says so."""

from __future__ import annotations

import os
import signal

import pytest

from openbook.data.corpus.executor import THREADS, Here, Processes, local
from openbook.errors import DataError, UsageError

pytestmark = pytest.mark.slow


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("three is no text")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def threads(_: int) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in THREADS}


@pytest.mark.parametrize("executor", [Here(), Processes(2)], ids=["here", "processes"])
def test_every_job_is_done_once(executor: Here | Processes) -> None:
    assert sorted(executor.map(square, list(range(20)))) == [(n, n * n) for n in range(20)]
    assert list(executor.map(square, [])) == []


@pytest.mark.parametrize("executor", [Here(), Processes(2)], ids=["here", "processes"])
def test_an_error_arrives_as_it_is(executor: Here | Processes) -> None:
    with pytest.raises(DataError, match="three is no text"):
        list(executor.map(refuse, list(range(40))))


def test_a_killed_worker_is_said() -> None:
    with pytest.raises(DataError, match="worker process was killed"):
        list(Processes(2).map(die, [1]))


def test_workers_have_one_thread_and_this_process_keeps_its_own() -> None:
    before = {name: os.environ.get(name) for name in THREADS}
    ((_, inside),) = Processes(1).map(threads, [0])
    assert inside == dict.fromkeys(THREADS, "1")
    assert {name: os.environ.get(name) for name in THREADS} == before


def interruptible(_: int) -> bool:
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_is_not_for_workers_even_while_they_start() -> None:
    ((_, inside),) = Processes(1).map(interruptible, [0])
    assert not inside
    assert interruptible(0), "this process hears of it as before"


def test_how_many() -> None:
    assert isinstance(local(1), Here)
    assert local(3).workers == 3
    with pytest.raises(UsageError, match="1 or more"):
        local(0)
