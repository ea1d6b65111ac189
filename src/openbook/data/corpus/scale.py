"""A corpus that is not there yet: how long it will take, on which machines, and what bounds it.

`plan` is arithmetic on rates, best those of a run that was (`Rates.of`). `simulate` plays the handing out of blocks on
machines that are unlike each other and that fail, with the policy of the executors: a free core takes the next block,
a lost machine's blocks are done again. Seconds and bytes everywhere.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openbook.errors import DataError, UsageError

SPREAD = 0.15  # of the time that equal blocks take on equal cores, in natural logarithms
MOST = 10_000_000  # blocks
RETURN = 600.0  # seconds until a machine that was lost is there again


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one core does in a second, and what text is like. The defaults are of 340 MB of books and pages."""

    clean: float = 5e6
    """Bytes of files read and put through all steps."""
    write: float = 15e6
    """Bytes of cleaned text searched for evaluation items and written."""
    tokenise: float = 30e6
    """Bytes of text made tokens."""
    compare: float = 30e6
    """Bytes of cleaned text whose marks are compared, in one process."""
    kept: float = 0.95
    """Part of the text that the steps leave."""
    unique: float = 0.97
    """Part of that which is left without duplicates."""
    document: float = 4000.0
    """Bytes of a document, on average."""
    paragraph: float = 400.0
    """Bytes of a paragraph, on average."""
    token: float = 4.4
    """Bytes of a token."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise UsageError(f"`{name}` of the rates is a number above 0: got {value}.")

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Rates:
        """Those of a corpus that was made, from its report.json. DataError: it says too little."""
        try:
            seconds, workers = report["seconds"], report["workers"]
            read, left, source = report["read"], report["left"], report["bytes_read"]
            marks = report["duplicates"]
            cleaned = marks["bytes"]
            text = {
                "clean": source / max(seconds["clean"], 1e-3) / workers,
                "write": cleaned / max(seconds["write"], 1e-3) / workers,
                "compare": cleaned / max(seconds["compare"], 1e-3),
                "kept": cleaned / max(1, read["bytes"]),
                "unique": left["bytes"] / max(1, cleaned),
                "document": read["bytes"] / max(1, read["documents"]),
                "paragraph": cleaned / max(1, marks.get("paragraphs", 0)),
            }
            if report["tokens"]:
                text |= {
                    "tokenise": left["bytes"] / max(seconds["tokenise"], 1e-3) / workers,
                    "token": left["bytes"] / report["tokens"],
                }
        except (KeyError, TypeError) as error:
            raise DataError(f"This is not the report of a corpus that was made here: {error} is missing.") from error
        return cls(**text)


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What there is to do it on."""

    count: int = 16
    """How many."""
    cores: int = 64
    """Of each."""
    memory: float = 256e9
    """Bytes of each."""
    storage: float = 5e9
    """Bytes a second that the shared storage gives and takes, together."""
    failures: float = 0.02
    """How often each is lost, a day."""
    slow: float = 0.05
    """Part of them that is slow …"""
    slowness: float = 2.0
    """… by so much."""

    def __post_init__(self) -> None:
        if min(self.count, self.cores) < 1 or min(self.memory, self.storage) <= 0:
            raise UsageError("A plan needs at least one machine with one core, some memory and storage.")
        if self.failures < 0 or not 0 <= self.slow <= 1 or self.slowness < 1:
            raise UsageError("`failures` is 0 or more, `slow` a part from 0 to 1, `slowness` 1 or more.")


def plan(size: float, rates: Rates, machines: Machines, block: float, signature: int) -> dict[str, Any]:
    """Stages, bounds and space for `size` bytes of files, in blocks of `block` bytes.

    signature    bytes of a document's marks: digest, signature and keys of its bands
    """
    if size <= 0 or block <= 0:
        raise UsageError(f"A plan is for some bytes in blocks of some bytes: got {size:g} and {block:g}.")
    if size / block > MOST:
        raise UsageError(f"{size / block:.3g} blocks are more than {MOST:,}, too many to hand out: give larger ones.")
    cores = machines.count * machines.cores
    cleaned, left = size * rates.kept, size * rates.kept * rates.unique
    documents, paragraphs = cleaned / rates.document, cleaned / rates.paragraph
    marks = documents * signature + paragraphs * 8
    moved = {"clean": size + cleaned + marks, "write": cleaned + left, "tokenise": left + left / rates.token * 4}
    work = {"clean": size / rates.clean, "write": cleaned / rates.write, "tokenise": left / rates.tokenise}
    stages: dict[str, dict[str, Any]] = {}
    for name, seconds in work.items():
        by_cores, by_storage = seconds / min(cores, math.ceil(size / block)), moved[name] / machines.storage
        stages[name] = {
            "core_hours": seconds / 3600, "seconds": max(by_cores, by_storage), "moved": moved[name],
            "bound": "cores" if by_cores >= by_storage else "storage",
        }  # fmt: skip
    alone = max(cleaned / rates.compare, marks / machines.storage)
    partitions = math.ceil(marks * 2 / (0.5 * machines.memory))
    stages["compare"] = {
        "core_hours": alone / 3600, "seconds": alone, "moved": marks * max(1, partitions), "bound": "one process",
        "partitions": max(1, partitions),
    }  # fmt: skip
    order = ("clean", "compare", "write", "tokenise")
    return {
        "bytes": size, "blocks": math.ceil(size / block), "documents": documents, "paragraphs": paragraphs,
        "tokens": left / rates.token, "left": left,
        "space": {"cleaned": cleaned, "marks": marks, "text": left, "shards": left / rates.token * 4},
        "stages": {name: stages[name] for name in order}, "seconds": sum(stages[name]["seconds"] for name in order),
        "rates": asdict(rates), "machines": asdict(machines),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Played:
    """One simulated stage."""

    seconds: float
    busy: float  # part of all cores' time in which work was done that counted
    lost: int  # machines that failed
    again: int  # blocks done again


def simulate(
    size: float, rate: float, machines: Machines, block: float, seed: int = 0, moved: float | None = None
) -> Played:
    """One stage of `size` bytes at `rate` bytes a second a core, block by block, which moves `moved` bytes (`size`)."""
    draw = np.random.default_rng(seed)
    count = math.ceil(size / block)
    pace = np.where(draw.random(machines.count) < machines.slow, machines.slowness, 1.0)
    width = machines.count * machines.cores
    crowd = max(
        1.0, rate * width * (moved or size) / size / machines.storage
    )  # the storage is shared: all wait for it alike
    takes = draw.lognormal(-(SPREAD**2) / 2, SPREAD, count) * (block / rate) * crowd
    down = [_next_loss(draw, machines, 0.0) for _ in range(machines.count)]
    free = [(0.0, core) for core in range(width)]
    heapq.heapify(free)
    waiting = list(range(count - 1, -1, -1))
    useful, end, lost, again = 0.0, 0.0, 0, 0
    seen: set[tuple[int, float]] = set()
    while waiting:
        now, core = heapq.heappop(free)
        machine = core // machines.cores
        while down[machine] + RETURN <= now:  # it failed and came back while this core was idle
            down[machine] = _next_loss(draw, machines, down[machine] + RETURN)
        if now >= down[machine]:
            heapq.heappush(free, (down[machine] + RETURN, core))
            continue
        index = waiting.pop()
        done = now + takes[index] * pace[machine]
        if done <= down[machine]:
            useful += takes[index] * pace[machine]
            end = max(end, done)
            heapq.heappush(free, (done, core))
            continue
        again += 1
        lost += (machine, down[machine]) not in seen
        seen.add((machine, down[machine]))
        waiting.append(index)
        heapq.heappush(free, (down[machine] + RETURN, core))
    return Played(end, useful / max(end * width, 1e-9), lost, again)


def _next_loss(draw: np.random.Generator, machines: Machines, after: float) -> float:
    return math.inf if machines.failures == 0 else after + float(draw.exponential(86400 / machines.failures))
