"""The WebSocket twin of every route that streams, at the same path, for browsers.

    → a request, as it would be posted there     one at a time: the next after the end of the answer
    ← a message for each chunk, then [DONE]      of a stream (`"stream": true`); any other answer is one message
    ← {"error": …}                               an answer that failed, or could go no further: its last message
    → {"type": "cancel"}                         stops the one that runs; it ends with such an error

A message is an exchange of HTTP to the server: the same gate, limits, pace, log and metrics. Whoever closes the socket
stops the work. Closed by the server: 1003 after a binary message, 1008 after a request while one runs, 1009 after one
of more bytes than a body may have.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from openbook.serve.errors import Rejected
from openbook.serve.gate import BEARER

if TYPE_CHECKING:
    from openbook.serve.route import Route
    from openbook.serve.server import Server

DONE = b"[DONE]"
OWN = (b"content-type", b"content-length", b"x-request-id")  # headers of each message, not of the socket
SHORT = 64  # characters of a message that asks for something else than an answer
BINARY, POLICY = 1003, 1008


class Cancel(msgspec.Struct, tag="cancel", forbid_unknown_fields=True):
    """Stop what runs."""


class Socket:
    """Events as messages."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers

    async def open(self) -> None:
        """Nothing is said before the first event."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def event(self, body: bytes, name: str = "") -> None:  # noqa: ARG002  # its type says it too
        """One message."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def comment(self) -> None:
        """Pings are a sign of life already."""

    async def close(self, done: bool) -> None:
        """The mark of the end, where it is one."""
        await self._send({"type": "http.response.body", "body": DONE if done else b"", "more_body": False})


class Exchange:
    """One request and its answer, as the server hears and says them."""

    def __init__(self, text: str, scope: Scope, send: Send) -> None:
        self.id = "req-" + secrets.token_hex(12)
        headers = [(name, value) for name, value in scope["headers"] if name not in OWN]
        self.scope = {**scope, "headers": [*headers, (b"x-request-id", self.id.encode())]}
        self.ended = False  # whether the last of the answer was said
        self.gone = asyncio.Event()
        self._body: bytes | None = text.encode()
        self._send = send

    async def receive(self) -> Message:
        """The request; then, that its caller has gone."""
        body, self._body = self._body, None
        if body is None:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if not message["type"].endswith("http.response.body"):
            return
        self.ended = not message.get("more_body", False)
        if body := message.get("body", b""):
            try:
                await self._send({"type": "websocket.send", "text": body.decode()})
            except OSError:
                raise ClientDisconnect from None


async def converse(server: Server, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """One socket, from its handshake to its end."""
    await receive()  # that somebody wants to connect
    if route.chunk is None or not _admitted(server, route, scope):
        await server.answer(route, scope, receive, send)  # which refuses it, and says so in log and metrics
        return
    await send({"type": "websocket.accept", "subprotocol": _protocol(scope.get("subprotocols", []))})
    code = await _Talk(server, route, scope, receive, send).run()
    if code is not None:
        await send({"type": "websocket.close", "code": code})


def _admitted(server: Server, route: Route, scope: Scope) -> bool:
    try:
        server.gate.admit(Headers(scope=scope), route.access, websocket=True)
    except Rejected:
        return False
    return True


def _protocol(offered: list[str]) -> str | None:
    """A browser that offers protocols wants one of them back: rather not the one that is a key."""
    return min(offered, key=lambda name: name.startswith(BEARER), default=None)


class _Talk:
    """Requests over a socket, one after another."""

    def __init__(self, server: Server, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        self._server, self._route, self._scope, self._receive, self._send = server, route, scope, receive, send
        self._exchange: Exchange | None = None
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> int | None:
        """Until the caller closes (None), or has to be closed: with which code."""
        heard: asyncio.Future[Any] = asyncio.ensure_future(self._receive())
        try:
            while True:
                await asyncio.wait({heard, self._work} if self._work else {heard}, return_when="FIRST_COMPLETED")
                if self._work is not None and self._work.done():
                    self._work = None
                    if self._exchange is not None and not self._exchange.ended:
                        return None  # the reader left it unread
                if heard.done():
                    message = heard.result()
                    if message["type"] == "websocket.disconnect":
                        return None
                    if (code := await self._hear(message.get("text"))) is not None:
                        return code
                    heard = asyncio.ensure_future(self._receive())
        finally:
            heard.cancel()
            await self._end()

    async def _hear(self, text: str | None) -> int | None:
        """One message; the code to close with, where it cannot be taken."""
        if text is None:
            return BINARY
        if len(text) <= SHORT and _is_cancel(text):
            running = None if self._exchange is None else self._server.board.by_id.get(self._exchange.id)
            if running is not None:
                running.stop("cancelled")
            return None
        if self._work is not None:
            if self._exchange is not None and not self._exchange.ended:
                return POLICY
            await self._work
        exchange = self._exchange = Exchange(text, self._scope, self._send)
        self._work = asyncio.ensure_future(
            self._server.answer(self._route, exchange.scope, exchange.receive, exchange.send)
        )
        return None

    async def _end(self) -> None:
        """Nobody hears an answer any more."""
        if self._exchange is not None:
            self._exchange.gone.set()
        if self._work is not None:
            await asyncio.wait({self._work})


def _is_cancel(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=Cancel)
    except msgspec.DecodeError:
        return False
    return True
