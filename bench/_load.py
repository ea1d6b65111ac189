"""A load as people make it: requests that arrive by chance, streamed over HTTP, each noted down as it was answered.

The client is as lean as it can be (a socket, a parser of events, no library), since it shares the machine with the
server that it measures; it is the same for all of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """How one request was answered; seconds since its arrival. `status` 0: the connection broke."""

    arrived: float
    prompt: int
    asked: int
    status: int = 0
    times: list[float] = field(default_factory=list)  # of each event that held text
    done: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    chunks: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] if self.times else math.inf

    @property
    def gaps(self) -> list[float]:
        """Seconds between events."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Request:
    """A prompt of so many letters, each a token, and how many tokens are to follow."""

    prompt: str
    new: int


def requests_of(
    count: int, seed: int, short: tuple[int, int], long: tuple[int, int], new: tuple[int, int]
) -> list[Request]:
    """Four short prompts to a long one; letters by chance, so that no two share a beginning."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        low, high = long if draw.random() < 0.2 else short
        letters = "".join(chr(97 + draw.randrange(22)) for _ in range(draw.randint(low, high)))  # a to v
        made.append(Request(letters, draw.randint(*new)))
    return made


async def ask(
    host: str, port: int, path: str, body: Mapping[str, Any], record: Record, header: str = "", limit: float = 300.0
) -> None:
    """One streamed request, noted in `record`."""
    began = time.perf_counter()
    writer = None
    try:
        async with asyncio.timeout(limit):
            reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
            data = json.dumps(body).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n{header}\r\n"
            )
            writer.write(head.encode() + data)
            status = await reader.readline()
            record.status = int(status.split()[1])
            async for line in reader:
                if line.startswith(b"data: "):
                    _note(line[6:].strip(), record, began)
    except (OSError, TimeoutError, ValueError, IndexError, asyncio.IncompleteReadError):
        record.status = record.status if record.times else 0
    finally:
        if writer is not None:
            writer.close()


def _note(data: bytes, record: Record, began: float) -> None:
    if data == b"[DONE]":
        record.done = True
        return
    event = json.loads(data)
    if event.get("usage"):
        record.usage = event["usage"]
    if any(choice.get("text") or choice.get("finish_reason") for choice in event.get("choices", ())):
        record.times.append(time.perf_counter() - began)
        record.chunks += 1


async def poisson(
    host: str, port: int, path: str, bodies: Sequence[tuple[Request, Mapping[str, Any]]], rate: float, seed: int
) -> tuple[list[Record], float]:
    """Requests at `rate` a second, in the mean; their records, and the seconds until the last was answered."""
    draw, records, tasks = random.Random(seed), [], []
    began, due = time.perf_counter(), 0.0
    for request, body in bodies:
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        record = Record(due, len(request.prompt), request.new)
        records.append(record)
        tasks.append(asyncio.ensure_future(ask(host, port, path, body, record)))
    await asyncio.gather(*tasks)
    return records, time.perf_counter() - began


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; nan of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan
