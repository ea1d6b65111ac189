"""An answer as events: over server-sent events, or over a WebSocket. One way of pacing both.

A chunk is sent when the one before it was taken: the transport's buffer (64 KiB) is the only one here, and while it is
full the endpoint's stream is not read. A reader that leaves it full for `stall` seconds is dropped and its work stops.
While nothing comes, a comment is sent every `keep_alive` seconds, so that nobody in between closes the connection.
However an answer ends, its stream is closed, and so its work, before anything else is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Protocol

import msgspec
from starlette.types import Send

from openbook.serve.errors import Rejected, rejected
from openbook.serve.running import TOLD, Board, Running
from openbook.serve.settings import Settings
from openbook.serve.wire.basics import Event

COMMENT = b": still here\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
TICK = 1.0  # seconds between looks at who waits


class Wire(Protocol):
    """Where events go."""

    async def open(self) -> None:
        """Begins the reply."""
        ...

    async def event(self, body: bytes, name: str = "") -> None:
        """One event, and its name, if it has one; returns when there is room for the next."""
        ...

    async def comment(self) -> None:
        """A sign of life."""
        ...

    async def close(self, done: bool) -> None:
        """Ends the reply; `done`: it is whole."""
        ...


class Sse:
    """Server-sent events as the body of an HTTP reply."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = [*HEADERS, *headers]
        self._ended = False

    async def open(self) -> None:
        """Status and headers."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def event(self, body: bytes, name: str = "") -> None:
        """A data line, under a line with the event's name."""
        data = (b"event: %b\n" % name.encode() if name else b"") + b"data: " + body + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def comment(self) -> None:
        """A comment line, which clients pass over."""
        if not self._ended:
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def close(self, done: bool) -> None:
        """The mark of the end, where it is one."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": DONE if done else b"", "more_body": False})


async def pump(chunks: AsyncIterator[msgspec.Struct], wire: Wire, running: Running, settings: Settings) -> None:
    """Sends `chunks` as they come. An error before the first of them is raised, one after it is an event.

    Where nothing has come after `keep_alive` seconds, the reply begins without it.
    """
    try:
        async with aclosing(chunks) as source:  # type: ignore[type-var]  # all of ours are generators
            await _begun(source, wire, running, settings.keep_alive)
            async for chunk in source:
                await _said(chunk, wire, running)
    except Exception as error:
        if running.begun:
            running.over = True
            await _failed(rejected(error), wire)
        raise
    except asyncio.CancelledError:
        if running.begun and running.stopped in TOLD and running.claim():
            await _failed(running.rejected, wire)
            raise running.rejected from None
        raise
    running.over, running.sending = True, time.monotonic()
    await wire.close(done=True)


async def _begun(source: AsyncIterator[msgspec.Struct], wire: Wire, running: Running, patience: float) -> None:
    """The first chunk, which is waited for before the reply begins."""
    first = asyncio.ensure_future(anext(source, None))
    try:
        await asyncio.wait({first}, timeout=patience)
        if first.done():
            first.result()  # what cannot be served is a reply of its own
        await wire.open()
        running.begun, running.heard = True, time.monotonic()
        chunk = await first
    except BaseException:
        first.cancel()
        await asyncio.wait({first})  # a generator is not closed while it runs
        first.cancelled() or first.exception()  # has been heard of
        raise
    if chunk is not None:
        await _said(chunk, wire, running)


async def _said(chunk: msgspec.Struct, wire: Wire, running: Running) -> None:
    running.sending = time.monotonic()
    await wire.event(msgspec.json.encode(chunk), chunk.type if isinstance(chunk, Event) else "")
    running.heard, running.sending = running.sending, None
    running.chunks += 1


async def _failed(error: Rejected, wire: Wire) -> None:
    """The last event says why there is no more; whoever does not read it in time does without."""
    with suppress(TimeoutError):
        async with asyncio.timeout(TICK):
            await wire.event(msgspec.json.encode(error.body))
            await wire.close(done=False)


async def watch(board: Board, wires: dict[str, Wire], settings: Settings) -> None:
    """For as long as a server runs: a sign of life to those who wait, an end to those who do not read."""
    signs: set[asyncio.Task[None]] = set()
    while True:
        await asyncio.sleep(min(TICK, settings.keep_alive / 4, settings.stall / 4))
        now = time.monotonic()
        for running in [running for running in board.by_id.values() if running.begun]:
            if running.sending is not None:
                if now - running.sending > settings.stall:
                    running.stop("stalled")
            elif now - running.heard > settings.keep_alive and (wire := wires.get(running.id)):
                running.heard = running.sending = now
                sign = asyncio.ensure_future(_sign(wire, running))
                signs.add(sign)
                sign.add_done_callback(signs.discard)


async def _sign(wire: Wire, running: Running) -> None:
    """A sign of life, which has to be taken as an event has to be."""
    since = running.sending
    with suppress(Exception):  # the reply ends just now, or its reader has gone: others see to that
        await wire.comment()
    if running.sending == since:
        running.sending = None
