"""A connection, bounded before there is a request: uvicorn's own waits for a header for ever, and holds all of it.

    header not whole `body_seconds` after its first byte, or after the connection   closed (408 where it has begun)
    header longer than `header` bytes                                                431
    more than `connections` open                                                     503

And what a request names in its first line (`GET http://name/path`) is its host, whatever its Host header says.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from openbook.serve.errors import Rejected
from openbook.serve.settings import Settings

BODY = (b"content-length", b"transfer-encoding")  # headers of a request that has one
CHUNKS = 8  # bytes on the wire for a byte of a body, at most: chunks of one byte are six


class Connection(HttpToolsProtocol):
    """Requests of one connection, one after another."""

    def __init__(
        self,
        settings: Settings,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._in_header = True  # or before it
        self._size = 0  # bytes of this request so far, as they came
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its own
        """Somebody is there; what they want has to follow."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.connections:
            self._refuse(Rejected(503, "There are as many connections as this server holds.", code="connections"))
            return
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """They have gone."""
        self._unset_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request, or of several."""
        if self.transport.is_closing():
            return
        if self._alarm is None and (self._in_header or self.cycle is None or self.cycle.response_complete):
            self._set_alarm()  # the first bytes of a header, or of what nobody reads any more
        self._size += len(data)
        super().data_received(data)
        if self._size > self._most and not self.transport.is_closing():
            self._too_large()

    @property
    def _most(self) -> int:
        """Bytes of a request as it comes: of its header, or with its body in small chunks and what follows them."""
        return self._settings.header + (0 if self._in_header else CHUNKS * self._settings.body)

    def on_headers_complete(self) -> None:
        """What is wanted is known."""
        self._unset_alarm()
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > self._settings.header:
            self._too_large()
            return
        body = any(name in BODY and value != b"0" for name, value in self.headers)
        if body and self.parser.should_upgrade() and self._should_upgrade():
            self._refuse(Rejected(400, "A WebSocket begins without a body.", code="invalid_http"))
            return
        self._in_header = False
        if not self.url.startswith((b"/", b"*")):
            host = _host_of(self.url)
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"] + [(b"host", host)]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of what follows the header."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole: what comes now is the next one's header."""
        self._unset_alarm()
        if not self.transport.is_closing():
            super().on_message_complete()
        self._in_header, self._size = True, 0

    def handle_websocket_upgrade(self) -> None:
        """From here on it is another protocol's, with clocks of its own."""
        self._unset_alarm()
        if not self.transport.is_closing():
            super().handle_websocket_upgrade()

    def _set_alarm(self) -> None:
        self._alarm = self.loop.call_later(self._settings.body_seconds, self._late)

    def _unset_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _late(self) -> None:
        self._alarm = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # the next request has begun while this one is answered: it has time
        if self._in_header and self._size:
            self._refuse(Rejected(408, "The header of the request did not arrive in time.", code="timeout"))
        else:
            self.transport.close()

    def _too_large(self) -> None:
        if self._in_header:
            self._refuse(Rejected(431, f"A header may have {self._settings.header} bytes.", code="header_too_large"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(Rejected(400, msg, code="invalid_http"))

    def _refuse(self, refusal: Rejected) -> None:
        """A reply without a request, and the end."""
        self._unset_alarm()
        if self.cycle is None or self.cycle.response_complete:  # nothing else is being written
            body = msgspec.json.encode(refusal.body)
            head = STATUS_LINE[refusal.status] + b"content-type: application/json\r\nconnection: close\r\n"
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()


def _host_of(url: bytes) -> bytes:
    """The host of an absolute URL; nothing, where it is not one."""
    try:
        found = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return b""
    if not found.host:
        return b""
    host = b"[" + found.host + b"]" if b":" in found.host else found.host
    return host if found.port is None else host + b":%d" % found.port
