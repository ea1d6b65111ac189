"""The application: a table of routes, each behind the gate, and nothing else.

app = make_app([Served(name="tiny", endpoint=engine)], Settings())     any ASGI server runs it
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Route as Path
from starlette.types import Receive, Scope, Send

from openbook.serve.errors import Rejected
from openbook.serve.route import Call, Reply, Route
from openbook.serve.routes import adapters, chat, completions, plain, responses, scores, vectors
from openbook.serve.served import Served
from openbook.serve.server import Server
from openbook.serve.settings import Settings

FAMILIES = (chat, completions, responses, vectors, scores, adapters, plain)
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
    app = Starlette(
        routes=[Path(path, _Endpoint(server, methods)) for path, methods in paths.items()], lifespan=lifespan
    )
    app.router.default = _Endpoint(server, {}).__call__
    app.router.redirect_slashes = False
    app.state.server = server
    return app


class _Endpoint:
    """All methods of one path. What is not there is told to those alone who may come in."""

    def __init__(self, server: Server, methods: dict[str, Route]) -> None:
        self._server = server
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._server.refuse_socket(receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        route = self._methods.get(method) or Route(
            method="GET", path="*", handler=_no_method if self._methods else _no_path
        )
        await self._server.answer(route, scope, receive, send)


async def _no_path(_: Call, __: None) -> Reply:
    raise Rejected(404, "There is nothing at this path. /openapi.json lists what there is.", code="not_found")


async def _no_method(_: Call, __: None) -> Reply:
    raise Rejected(405, "This path is there, and not for this method. /openapi.json says what it takes.")
