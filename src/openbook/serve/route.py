"""A route as a value: from it follow the router, who may call it, and its place in the OpenAPI page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Send

from openbook.chat import Usage
from openbook.serve.events import Sse, Wire
from openbook.serve.gate import Access, Caller
from openbook.serve.running import Running

if TYPE_CHECKING:
    from openbook.serve.server import Server

T = TypeVar("T")
LONG = 1 << 14  # bytes of a request; of text, as many take some milliseconds to be tokenised
HUGE = 1 << 18  # as many take so much time and memory that only some of them are read at once


@dataclass(eq=False, kw_only=True)
class Call:
    """One call of a route. `path`: what stands in the path's places."""

    server: Server
    id: str
    caller: Caller
    path: dict[str, str] = field(default_factory=dict)
    query: Any = None  # of the type that the route says
    wire: Callable[[Send, list[tuple[bytes, bytes]]], Wire] = Sse  # where a reply in chunks goes
    headers: dict[str, str] = field(default_factory=dict)  # of the reply: what is left to the caller
    model: str = ""  # which one it came to, for logs and metrics
    running: Running | None = None
    began: float = field(default_factory=time.monotonic)
    bytes: int = 0  # of its body
    first: float | None = None  # seconds to the first of its answer
    usage: Usage = field(default_factory=Usage)  # as far as it is known
    finishes: list[str] = field(default_factory=list)  # how its choices ended

    async def aside(self, work: Callable[[], T]) -> T:
        """Does what takes the longer the longer the request is; beside the event loop, where that is long. What is huge
        waits for its like, so that whoever sends nothing else takes neither all threads nor all memory."""
        if self.bytes < LONG:
            return work()
        huge = self.server.huge if self.bytes >= HUGE else None  # None: the threads of all
        return await asyncio.get_running_loop().run_in_executor(huge, work)

    @property
    def price(self) -> int:
        """Tokens that the caller pays for. Of a prompt whose answer was left before its end nobody said how many it
        had: then a token is four bytes."""
        left = self.running is not None and self.running.stopped is not None
        return self.usage.total_tokens + (self.bytes // 4 if left and not self.usage.prompt_tokens else 0)


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
    subject: str | None = None  # the parameter that an error is about which names none
    works: bool = False  # takes the model's time: counted, watched, refused while draining
    media: str = "application/json"
