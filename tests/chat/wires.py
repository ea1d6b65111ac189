"""An endpoint for tests that says exactly the bytes it is told to, over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PAUSE, HANG = object(), object()  # between pieces: let what was said arrive; say nothing more, until the other leaves


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int  # which one, in order
    hung_up: threading.Event = field(default_factory=threading.Event)  # the other left while it was answered


Bytes = bytes | Sequence[Any]  # pieces, PAUSE and HANG among them
Script = Callable[[Asked], Bytes]


class Endpoint:
    """Answers requests, one after another, by what it was given: bytes, pieces, or a function of the request."""

    def __init__(self, *replies: Bytes | Script) -> None:
        self.replies = list(replies)
        self.asked: list[Asked] = []
        self.url = ""
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._connections += 1
        number = self._connections
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *rest = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                asked = Asked(method, path, headers, json.loads(raw) if raw else None, number)
                self.asked.append(asked)
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                if not await self._say(asked, reply(asked) if callable(reply) else reply, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _say(
        self, asked: Asked, reply: Bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Says it; whether the connection stays open."""
        pieces = [reply] if isinstance(reply, bytes) else list(reply)
        try:
            for piece in pieces:
                if piece is HANG:
                    if await reader.read(1) == b"":
                        asked.hung_up.set()
                    return False
                if piece is PAUSE:
                    await asyncio.sleep(0.002)
                    continue
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            asked.hung_up.set()
            return False
        return pieces[-1:] != [b""] and b"onnection: close" not in (pieces[0] if pieces else b"onnection: close")


@contextmanager
def endpoint(*replies: Bytes | Script) -> Iterator[Endpoint]:
    """It runs, in a thread of its own."""
    found = Endpoint(*replies)
    started = threading.Event()
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def life() -> None:
        nonlocal stop, loop
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(found.serve, "127.0.0.1", 0, limit=2**24)
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(life()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def reply(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """A whole reply."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(raw)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def chunk(raw: bytes) -> bytes:
    """A piece of a body that comes in pieces."""
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = chunk(b"")


def stream(*events: Any, done: bool = True) -> list[bytes]:
    """A stream of events; a text is the data as it is."""
    datas = [event if isinstance(event, str) else json.dumps(event) for event in events]
    datas += ["[DONE]"] if done else []
    return [STREAM, *(chunk(f"data: {data}\n\n".encode()) for data in datas), END]


def said(content: str | None = None, finish: str | None = None, *, index: int = 0, **delta: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    delta |= {} if content is None else {"content": content}
    return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
COUNTED = {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
