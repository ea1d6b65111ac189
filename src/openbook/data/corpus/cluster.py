"""The blocks of a corpus on a Ray cluster: each a task, handed to whatever core is free, again if its machine is lost.

All machines see the same folders under the same paths (NFS, Lustre, a mounted bucket); what travels is the name of a
block, and the result lies in a file. The result is that of one process, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from openbook.errors import DataError, MissingExtra

J = TypeVar("J")
R = TypeVar("R")
AHEAD = 2  # tasks handed out for each core, so that none waits for the next


class Ray:
    """An executor (`executor.py`) over a cluster: the one this machine is part of, else one on this machine alone."""

    def __init__(self, address: str | None = None, cores: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "ray", "Preparing a corpus on a cluster") from error
        self._ray: Any = ray
        if not ray.is_initialized():
            local = {"num_cpus": cores, "_node_ip_address": "127.0.0.1"} if address is None else {}
            try:
                ray.init(address or "auto", log_to_driver=False, include_dashboard=False)
            except ConnectionError:
                if address is not None:
                    raise DataError(
                        f"There is no Ray cluster at '{address}'. Start one with: ray start --head"
                    ) from None
                ray.init(log_to_driver=False, include_dashboard=False, **local)

    @property
    def workers(self) -> int:
        """Cores of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[J, R]]:
        """See `Executor`."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=3)(function)
        limit = AHEAD * self.workers
        left = iter(jobs)
        waiting: dict[Any, J] = {}
        try:
            while True:
                while len(waiting) < limit and (job := next(left, None)) is not None:
                    waiting[remote.remote(job)] = job
                if not waiting:
                    return
                done, _ = ray.wait(list(waiting), num_returns=1)
                for reference in done:
                    job = waiting.pop(reference)
                    yield job, self._result(reference)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else DataError(str(error)) from error
        except self._ray.exceptions.RayError as error:
            raise DataError(
                f"A machine of the cluster was lost and its block failed again ({type(error).__name__}). What is done "
                "is kept: run the same command again."
            ) from error
