"""The application: a table of routes, each behind the gate, and nothing else.

app = make_app([Served(name="tiny", endpoint=engine)], Settings())     any ASGI server runs it
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route as Path
from starlette.routing import WebSocketRoute as SocketPath
from starlette.types import ASGIApp, Receive, Scope, Send

from openbook.serve.errors import Rejected
from openbook.serve.limits import KINDS, RATES
from openbook.serve.route import Call, Reply, Route
from openbook.serve.routes import adapters, chat, completions, plain, responses, scores, swap, vectors
from openbook.serve.served import Served
from openbook.serve.server import ID, Server
from openbook.serve.settings import Settings
from openbook.serve.sockets import converse

FAMILIES = (chat, completions, responses, vectors, scores, adapters, swap, plain)
ROUTES: tuple[Route, ...] = tuple(route for family in FAMILIES for route in family.ROUTES)


def make_app(served: Sequence[Served], settings: Settings | None = None, *, ready: bool = True) -> Starlette:
    """An ASGI application; `app.state.server` is its `Server`. `ready`: it takes work as soon as it runs."""
    server = Server(served, ROUTES, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await server.start()
        if ready:
            server.become_ready()
        try:
            yield
        finally:
            await server.close()

    paths: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = route
    ends = {_pattern(path): _Endpoint(server, methods) for path, methods in paths.items()}
    app = _App(
        routes=[kind(path, end) for path, end in ends.items() for kind in (Path, SocketPath)],
        middleware=_sharing(server.settings),
        lifespan=lifespan,
    )
    app.router.default = _Endpoint(server, {}).__call__
    app.router.redirect_slashes = False
    app.state.server = server
    return app


def _pattern(path: str) -> str:
    """As Starlette has it. The name of a model may have slashes: clients write them as %2F, or as they are."""
    return path.replace("{model}", "{model:path}")


def _sharing(settings: Settings) -> list[Middleware]:
    """CORS, for the pages that the settings name. A preflight is answered before the gate, for a browser sends no key
    with it; the answer is the same for every path and says nothing of what is there."""
    if not settings.origins:
        return []
    shown = [ID, "retry-after", *(f"x-ratelimit-{what}-{kind}" for what in RATES for kind in KINDS)]
    return [
        Middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",), expose_headers=shown,
        )
    ]  # fmt: skip


class _App(Starlette):
    """Without the layers that answer errors: these are answered within, and a layer costs every event of a stream."""

    def build_middleware_stack(self) -> ASGIApp:
        """What was asked for, around the paths."""
        app: ASGIApp = self.router
        for layer in reversed(self.user_middleware):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        return app


class _Endpoint:
    """All methods of one path. What is not there is told to those alone who may come in."""

    def __init__(self, server: Server, methods: dict[str, Route]) -> None:
        self._server = server
        self._methods = methods
        self._other = Route(method="GET", path="*", handler=self._refuse)
        self._socket = next((route for route in methods.values() if route.chunk is not None), self._other)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one WebSocket."""
        if scope["type"] == "websocket":
            await converse(self._server, self._socket, scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._server.answer(self._methods.get(method, self._other), scope, receive, send)

    async def _refuse(self, _: Call, __: None) -> Reply:
        if not self._methods:
            raise Rejected(404, "There is nothing at this path. /openapi.json lists what there is.", code="not_found")
        allowed = ", ".join([*self._methods, *(["HEAD"] if "GET" in self._methods else [])])
        raise Rejected(405, f"This path takes {allowed}.", code="method_not_allowed", headers={"Allow": allowed})
