"""What is at work: every request by its id, so that it can be watched, paced, cancelled and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from openbook.serve.errors import Rejected

# Why a request was stopped: what the caller is told, where anybody still listens.
REASONS = {
    "gone": (499, "The caller has gone."),
    "cancelled": (499, "The request was cancelled by its id."),
    "stalled": (499, "The reader left the stream unread for too long."),
    "shutdown": (503, "The server stops now."),
    "timeout": (504, "The request was not done in the time that it had."),
}
LATE = ("gone", "cancelled", "timeout")  # what stops nothing any more once the work is done
TOLD = ("cancelled", "shutdown", "timeout")  # to those whose reply has begun, in its last event


@dataclass(eq=False)
class Running:
    """One request at work."""

    id: str
    path: str
    caller: str
    task: asyncio.Task[object]
    began: float = field(default_factory=time.monotonic)
    model: str = ""
    begun: bool = False  # whether a reply in chunks has begun
    over: bool = False  # whether nothing but the end of its reply is left to be sent
    chunks: int = 0
    tokens: int = 0  # output tokens that were said so far, as far as they are known
    stopped: str | None = None
    heard: float = 0.0  # when its reader was last sent something
    sending: float | None = None  # since when its reader has not taken what it was sent

    def stop(self, reason: str) -> None:
        """Ends it at its next await; the first reason counts. What comes after the end stops nothing."""
        if self.stopped is None and not (self.over and reason in LATE):
            self.stopped = reason
            self.task.cancel()

    @property
    def rejected(self) -> Rejected:
        """What it ends with once it was stopped."""
        status, message = REASONS[self.stopped or "gone"]
        return Rejected(status, message, code=self.stopped)

    def claim(self) -> bool:
        """Whether a cancellation that arrives is `stop`'s; it is then undone, so that an answer can be written."""
        if self.stopped is None:
            return False
        self.task.uncancel()
        return True


class Board:
    """All that is at work."""

    def __init__(self) -> None:
        self.by_id: dict[str, Running] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def entered(self, running: Running) -> Iterator[Running]:
        """Stands on the board while the block runs."""
        self.by_id[running.id] = running
        self._empty.clear()
        try:
            yield running
        finally:
            del self.by_id[running.id]
            if not self.by_id:
                self._empty.set()

    def __len__(self) -> int:
        return len(self.by_id)

    async def emptied(self, seconds: float) -> bool:
        """Waits until nothing is at work; False when it still is after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
