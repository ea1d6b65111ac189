"""A route as a value: from it follow the router, who may call it, and its place in the OpenAPI page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.responses import Response

from openbook.serve.gate import Access, Caller
from openbook.serve.running import Running

if TYPE_CHECKING:
    from openbook.serve.server import Server


@dataclass(eq=False, kw_only=True)
class Call:
    """One call of a route. `path`: what stands in the path's places."""

    server: Server
    id: str
    caller: Caller
    path: dict[str, str] = field(default_factory=dict)
    query: Any = None  # of the type that the route says
    model: str = ""  # which one it came to, for logs and metrics
    running: Running | None = None


@dataclass(frozen=True)
class Stream:
    """A reply in chunks."""

    chunks: AsyncIterator[msgspec.Struct]


Reply = msgspec.Struct | Stream | Response
Handler = Callable[[Call, Any], Awaitable[Reply]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """`request`: the type of the body, None where there is none; `reply`: that of a success; `query`: that of what
    stands behind the path's question mark, where anything may."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    request: type[msgspec.Struct] | None = None
    reply: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    access: Access = "user"
    summary: str = ""
    works: bool = False  # takes the model's time: counted, watched, refused while draining
    media: str = "application/json"
