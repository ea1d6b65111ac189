"""The synchronous face of the asynchronous core, for scripts and terminals: two functions, and no twin of anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from typing import TypeVar

from openbook.errors import UsageError

T = TypeVar("T")


def wait(awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`."""
    _outside_a_loop(awaitable)

    async def whole() -> T:
        return await awaitable

    with asyncio.Runner() as runner:
        return runner.run(whole())


def iterate(stream: AsyncIterator[T]) -> Iterator[T]:
    """The items of `stream` as they come. Closing the iterator, an error and Ctrl-C close the stream too."""
    _outside_a_loop(stream)
    return _iterate(stream)


def _iterate(stream: AsyncIterator[T]) -> Iterator[T]:
    end = object()

    async def step() -> T | object:
        return await anext(stream, end)

    async def close() -> None:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()

    with asyncio.Runner() as runner:
        try:
            while (item := runner.run(step())) is not end:
                yield item  # type: ignore[misc]  # `end` is the only item that is no T
        finally:
            runner.run(close())


def _outside_a_loop(work: object) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if asyncio.iscoroutine(work):
        work.close()
    raise UsageError("An event loop is running here: use `async for` and `await` instead of `iterate` and `wait`.")
