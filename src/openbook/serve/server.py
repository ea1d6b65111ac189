"""One server: its models, its bounds, what is at work; and the way of every request through it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from openbook.serve.errors import Rejected, busy, rejected
from openbook.serve.events import Sse, Wire, pump, watch
from openbook.serve.gate import Gate
from openbook.serve.logs import Log, remote_of
from openbook.serve.metrics import Metrics
from openbook.serve.reading import read
from openbook.serve.route import Call, Route, Stream
from openbook.serve.running import Board, Running
from openbook.serve.served import Load, Models, Mortal, Served
from openbook.serve.settings import Settings
from openbook.serve.sockets import Socket
from openbook.serve.spans import traces
from openbook.serve.stored import Stored

ID = "x-request-id"
AT_ONCE = 2  # huge requests that are read, and made ids of, at once


class Server:
    """Everything that a process serves."""

    def __init__(self, served: Sequence[Served], routes: Sequence[Route], settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.models = Models(served)
        self.routes = tuple(routes)
        self.log = Log(self.settings)
        self.gate = Gate(self.settings, self.log)
        self.board = Board()
        self.metrics = Metrics(self)
        self.tracing = traces(self.settings)
        self.stored = Stored(self.settings)
        self.huge = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="openbook-huge")  # see Call.aside
        self.wires: dict[str, Wire] = {}
        self.load: Load | None = None  # how a folder becomes a model, where this server may be told to
        self.swapping = asyncio.Lock()
        self.ready = False
        self.draining = False
        self.began = time.time()
        self._watches: list[asyncio.Task[None]] = []
        self._besides: set[asyncio.Task[None]] = set()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """The event loop runs."""
        self._watches = [
            asyncio.ensure_future(watch(self.board, self.wires, self.settings)),
            asyncio.ensure_future(self.gate.watch()),
        ]

    def become_ready(self, url: str = "") -> None:
        """From now on it takes work."""
        self.ready = True
        self.log.say("ready", url=url, models=list(self.models.all))

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on beside the requests, until it is done or the server closes."""
        task = asyncio.ensure_future(work)
        self._besides.add(task)
        task.add_done_callback(self._besides.discard)

    async def drain(self) -> bool:
        """Takes nothing new and lets what runs finish; False where that took too long, and was stopped."""
        self.ready, self.draining = False, True
        done = await self.board.emptied(self.settings.drain)
        if not done:
            self.stop()
            await self.board.emptied(5.0)
        return done

    def stop(self) -> None:
        """Stops what runs."""
        self.draining = True
        for running in list(self.board.by_id.values()):
            running.stop("shutdown")

    async def close(self) -> None:
        """The end."""
        self.ready = False
        for task in [*self._watches, *self._besides]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.huge.shutdown(wait=False, cancel_futures=True)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    @property
    def unready(self) -> str | None:
        """Why it takes no work now; None: it does."""
        if self.draining:
            return "The server is stopping."
        if not self.ready:
            return "The server is not ready yet."
        for name, served in self.models.all.items():
            if isinstance(served.endpoint, Mortal) and (why := served.endpoint.broken):
                return f"The model {name!r} does not work any more: {why}"
        return None

    # -- a request ----------------------------------------------------------------------------------------------------

    async def answer(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """The way of one request, by HTTP or as a message of a WebSocket: in, its body, its work, its reply."""
        headers, socket = Headers(scope=scope), scope["type"] == "websocket"
        number = headers.get(ID, "")
        if not (number.isascii() and number.isprintable() and 0 < len(number) <= 128) or number in self.board.by_id:
            number = "req-" + secrets.token_hex(12)
        began, status, call, request = time.monotonic(), 500, None, None
        span = None if self.tracing is None else self.tracing.begin(route, headers)
        try:
            caller = self.gate.admit(headers, route.access, websocket=socket)
            call = Call(server=self, id=number, caller=caller, path=dict(scope.get("path_params", {})))
            call.wire = Socket if socket else Sse
            if route.works or route.request is not None:
                call.headers = self.gate.count(caller)
            call.query = _query(route, scope)
            request = await self._read(route, call, headers, receive)
            self.gate.check(caller, call.path, request)
            status = await self._work(route, call, request, receive, send)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            refusal = rejected(error).about(request, route.subject)
            status = refusal.status
            self.metrics.rejected(refusal)
            if status >= 500 and not isinstance(error, Rejected):
                self.log.failure(number, error)
            if call is None or call.running is None or not call.running.begun:
                await self._send(refusal.response(), number, scope, receive, send, call)
        finally:
            seconds = time.monotonic() - began
            if call is not None:
                self.gate.charge(call.caller, call.price)
            self.metrics.answered(route, call, status, seconds)
            self.log.request(route, call, number, status, seconds, remote_of(scope))
            if span is not None and self.tracing is not None:
                self.tracing.end(span, call, number, status)

    async def _read(self, route: Route, call: Call, headers: Headers, receive: Receive) -> Any:
        """The body as its type; bounded in bytes and time."""
        if route.request is None:
            return None
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Rejected(415, f"The body must be application/json: got {kind!r:.80}.", code="unsupported_media_type")
        limit = self.settings.body
        try:
            said = int(headers.get("content-length", "0"))
        except ValueError:
            said = 0
        parts, size, more = [], said, True
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                if said <= limit:
                    size = 0
                while more and size <= limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Rejected(408, "The body of the request did not arrive in time.", code="timeout") from None
        if size > limit:
            raise Rejected(413, f"The body has more than {limit} bytes, the most that is read.", code="too_large")
        call.bytes = size
        request = await call.aside(partial(read, b"".join(parts) or b"{}", route.request))
        if self.settings.log_prompts:
            self.log.say("asked", id=call.id, body=msgspec.to_builtins(request))
        return request

    async def _work(self, route: Route, call: Call, request: Any, receive: Receive, send: Send) -> int:
        """Runs the handler and sends what it says, for as long as somebody listens; the status."""
        task = asyncio.current_task()
        assert task is not None, "runs in an event loop"
        if not route.works:
            return await self._reply(route, call, request, receive, send)
        if self.draining or not self.ready:
            raise Rejected(503, str(self.unready), code="unavailable", headers={"Retry-After": "5"})
        if len(self.board) >= self.settings.requests:
            raise busy(f"{len(self.board)} requests are at work, the most that are taken.", 1.0)
        running = Running(call.id, route.path, call.caller.name, task)
        with self.gate.entered(call.caller), self.board.entered(running), self._limited(running, request):
            call.running = running
            gone = asyncio.ensure_future(_gone(receive, running))
            try:
                return await self._reply(route, call, request, receive, send)
            except asyncio.CancelledError:
                if not running.claim():
                    raise
                raise running.rejected from None
            finally:
                gone.cancel()

    @contextmanager
    def _limited(self, running: Running, request: msgspec.Struct | None) -> Iterator[None]:
        """Stops what is not done in its time, whether or not its endpoint looks at the clock."""
        asked = None if request is None else msgspec.structs.asdict(request).get("timeout")
        limit = min((seconds for seconds in (asked, self.settings.timeout) if seconds is not None), default=None)
        if limit is None:
            yield
            return
        alarm = asyncio.get_running_loop().call_later(limit, running.stop, "timeout")
        try:
            yield
        finally:
            alarm.cancel()

    async def _reply(self, route: Route, call: Call, request: Any, receive: Receive, send: Send) -> int:
        reply, running = await route.handler(call, request), call.running
        if isinstance(reply, Stream):
            assert running is not None, "what streams works"
            headers = {ID: call.id, **call.headers}
            wire = self.wires[call.id] = call.wire(send, [(name.encode(), it.encode()) for name, it in headers.items()])
            try:
                await pump(reply.chunks, wire, running, self.settings)
            finally:
                del self.wires[call.id]
            return 200
        if isinstance(reply, msgspec.Struct):
            reply = Response(msgspec.json.encode(reply), media_type="application/json")
        if running is not None:
            running.over = running.begun = True
        await self._send(reply, call.id, {"type": "http"}, receive, send, call)
        return reply.status_code

    async def _send(
        self, reply: Response, number: str, scope: Scope, receive: Receive, send: Send, call: Call | None
    ) -> None:
        reply.headers.update({ID: number} | ({} if call is None else call.headers))
        await reply(scope, receive, send)


def _query(route: Route, scope: Scope) -> Any:
    """What stands behind the question mark, as its type; what the route does not know is refused."""
    given = dict(QueryParams(scope["query_string"]))
    if route.query is not None:
        return msgspec.convert(given, route.query, strict=False)
    if given and route.path != "*":
        name = next(iter(given))[:100]
        raise Rejected(400, f"Unknown parameter `{name}`: this path takes none.", code="unknown_parameter", param=name)
    return None


async def _gone(receive: Receive, running: Running) -> None:
    """Stops the work when the caller leaves."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
    running.stop("gone")
