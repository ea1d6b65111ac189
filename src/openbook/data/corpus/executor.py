"""Who does the work of many blocks: this process, several on this machine, or a cluster.

A job is a module-level function and a value that can be pickled; it writes its result to files, whole or not at all,
and returns little. Jobs may run in any order, twice, or not at all when somebody stops them: the next run goes on.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

from openbook.errors import DataError, UsageError

J = TypeVar("J")
R = TypeVar("R")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class Executor(Protocol):
    """Runs jobs side by side."""

    @property
    def workers(self) -> int:
        """How many run at a time."""
        ...

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[J, R]]:
        """Each job with what `function` returned for it, as they finish. The first error stops the rest."""
        ...


class Here:
    """One after the other, in this process."""

    workers = 1

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[J, R]]:
        """See `Executor`."""
        for job in jobs:
            yield job, function(job)


class Processes:
    """Several processes on this machine, each with one thread; they end when this one does, however it ends."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UsageError(f"`processes` must be 1 or more: got {count}.")
        self.workers = count

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[J, R]]:
        """See `Executor`."""
        kept = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))  # read by the libraries when a worker loads them
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.workers, max(1, len(jobs))), mp_context=context, initializer=_begin)
        waiting: dict[Future[R], J] = {}
        left = iter(jobs)
        try:
            while True:
                for job in left:
                    with _no_interrupt():
                        waiting[pool.submit(function, job)] = job
                    if len(waiting) >= 2 * self.workers:  # what is handed out is little, whatever there is to do
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "A worker process was killed, perhaps because memory ran out. What is done is kept: run the same "
                "command again, with fewer --processes."
            ) from error
        finally:
            for process in list((pool._processes or {}).values()) if waiting else []:
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            for name, value in kept.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits; a worker that is started within never hears of it, also before `_begin`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends with it, also when that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()


def _end_with(ended: Callable[[], object]) -> None:
    ended()
    os._exit(1)


@functools.cache
def processes() -> int:
    """How many processes this machine has room for: its cores, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local(count: int | None = None) -> Executor:
    """This machine: `count` processes, by default one for each core."""
    count = processes() if count is None else count
    return Processes(count) if count != 1 else Here()
