"""How an answer becomes events: its beginning, its end, and every way of being stopped between; without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from openbook.errors import InputError
from openbook.serve import events
from openbook.serve.errors import Rejected
from openbook.serve.events import COMMENT, DONE, Sse, pump, watch
from openbook.serve.running import Board, Running
from openbook.serve.settings import Settings

QUICK = Settings(keep_alive=0.03, stall=0.08)


class Said(msgspec.Struct):
    """A chunk."""

    n: int


class Pipe:
    """An ASGI `send` that keeps what it is sent; while `full`, it waits. `order`: what happened, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.room = asyncio.Event()
        self.room.set()
        self.fails = False  # the next time

    async def send(self, message: Any) -> None:
        await self.room.wait()
        if self.fails:
            self.fails = False
            raise RuntimeError("no room")
        if message["type"] == "http.response.start":
            self.order.append("open")
            return
        if message["body"] not in (b"", DONE):
            self.order.append("comment" if message["body"] == COMMENT else message["body"].decode().strip())
        if not message["more_body"]:
            self.order.append("done" if message["body"] == DONE else "end")


Piece = int | float | Exception | asyncio.Event


async def source(pipe: Pipe, *pieces: Piece) -> AsyncIterator[Said]:
    """Numbers are said, seconds slept, events waited for, errors raised."""
    try:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield Said(piece)
    finally:
        pipe.order.append("closed")


def run(
    pieces: Callable[[], list[Piece]],
    during: Callable[[Running, Pipe], Awaitable[None]] | None = None,
    settings: Settings = QUICK,
) -> tuple[list[str], BaseException | None]:
    """What was sent, and what `pump` raised."""

    async def work() -> tuple[list[str], BaseException | None]:
        board, wires, pipe = Board(), dict[str, Any](), Pipe()
        looks = asyncio.ensure_future(watch(board, wires, settings))

        async def answer() -> None:
            task = asyncio.current_task()
            assert task is not None
            running = Running("a", "/", "", task)
            wires["a"] = Sse(pipe.send, [])
            with board.entered(running):
                ready.set_result(running)
                await pump(source(pipe, *pieces()), wires["a"], running, settings)

        ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        answering = asyncio.ensure_future(answer())
        running = await ready
        if during is not None:
            await during(running, pipe)
        await asyncio.wait({answering}, timeout=5)
        assert answering.done(), pipe.order
        assert not looks.done(), "the watch goes on"
        looks.cancel()
        assert len(board) == 0
        if answering.cancelled():
            return pipe.order, asyncio.CancelledError()
        error = answering.exception()
        if isinstance(error, Rejected):
            assert answering.cancelling() == 0, "a stop that was answered is no cancellation any more"
        return pipe.order, error

    return asyncio.run(work())


async def moment(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)


def says(number: int) -> str:
    return f'data: {{"n":{number}}}'


def test_a_whole_answer() -> None:
    assert run(lambda: [1, 2]) == (["open", says(1), says(2), "closed", "done"], None)


def test_an_answer_of_nothing_is_whole() -> None:
    assert run(list) == (["closed", "open", "done"], None)


def test_an_error_before_the_first_chunk_is_raised() -> None:
    order, error = run(lambda: [InputError("no")])
    assert order == ["closed"]
    assert isinstance(error, InputError)


def test_an_error_later_is_an_event_behind_the_end_of_the_work() -> None:
    order, error = run(lambda: [1, InputError("no")])
    assert order[:3] == ["open", says(1), "closed"]
    assert '"no"' in order[3]
    assert order[4:] == ["end"]
    assert isinstance(error, InputError)


def test_an_error_after_a_reply_that_began_without_a_chunk() -> None:
    order, error = run(lambda: [0.1, InputError("no")])
    assert order[0] == "open"
    assert "comment" in order
    assert '"no"' in order[-2]
    assert order[-1] == "end"
    assert isinstance(error, InputError)


def test_comments_while_nothing_comes() -> None:
    order, error = run(lambda: [1, 0.2, 2])
    assert error is None
    assert order.count("comment") >= 2
    assert [one for one in order if one != "comment"] == ["open", says(1), says(2), "closed", "done"]


@pytest.mark.parametrize("reason", ["gone", "cancelled", "shutdown", "stalled"])
def test_a_stop_before_the_first_chunk_sends_nothing(reason: str) -> None:
    async def stop(running: Running, _: Pipe) -> None:
        await moment()
        running.stop(reason)
        running.stop("gone")  # the first reason counts

    order, error = run(lambda: [asyncio.Event()], stop, Settings())
    assert order == ["closed"]
    assert isinstance(error, asyncio.CancelledError)


@pytest.mark.parametrize("reason", ["gone", "cancelled", "shutdown", "stalled"])
def test_a_stop_between_chunks(reason: str) -> None:
    async def stop(running: Running, _: Pipe) -> None:
        await moment()
        running.stop(reason)
        assert running.stopped == reason

    order, error = run(lambda: [1, asyncio.Event()], stop)
    assert order[:3] == ["open", says(1), "closed"]
    if reason in ("cancelled", "shutdown"):
        assert reason in order[3]
        assert order[4:] == ["end"]
        assert isinstance(error, Rejected)
    else:
        assert order[3:] == []
        assert isinstance(error, asyncio.CancelledError)


@pytest.mark.parametrize("first", [True, False], ids=["of the head", "of a chunk"])
def test_a_reader_that_takes_nothing_is_dropped(first: bool) -> None:
    async def fill(running: Running, pipe: Pipe) -> None:
        if not first:
            await moment()
        pipe.room.clear()
        if first:
            await moment(0.05)
            running.stop("gone")  # a reply that has not begun has nobody who watches it but its caller

    order, error = run(lambda: [asyncio.Event()] if first else [1, 0.02, *range(100)], fill)
    assert order[-1] == "closed"
    assert isinstance(error, asyncio.CancelledError)


def test_a_reader_that_takes_no_comment_is_dropped() -> None:
    async def fill(_: Running, pipe: Pipe) -> None:
        await moment()
        pipe.room.clear()

    order, error = run(lambda: [1, asyncio.Event()], fill)
    assert order == ["open", says(1), "closed"]
    assert isinstance(error, asyncio.CancelledError)


def test_who_cancels_a_reader_that_takes_nothing_frees_its_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TICK", 0.02)

    async def fill(running: Running, pipe: Pipe) -> None:
        await moment()
        pipe.room.clear()
        await moment()
        running.stop("cancelled")
        await moment(0.005)
        assert pipe.order[-1] == "closed"

    order, error = run(lambda: [1, 0.015, *range(100)], fill, Settings())
    assert order == ["open", says(1), "closed"]
    assert isinstance(error, Rejected)


def test_a_stop_just_when_the_first_chunk_is_there() -> None:
    event = None

    def pieces() -> list[Piece]:
        nonlocal event
        event = asyncio.Event()
        return [event, 1, 2]

    async def stop(running: Running, _: Pipe) -> None:
        await moment()
        assert event is not None
        event.set()
        running.stop("gone")

    order, error = run(pieces, stop, Settings())
    assert order == ["closed"]
    assert isinstance(error, asyncio.CancelledError)


def test_who_goes_after_the_end_has_stopped_nothing() -> None:
    async def go(running: Running, pipe: Pipe) -> None:
        await moment(0.005)
        pipe.room.clear()
        await moment(0.02)  # all is said, and the end waits for room
        assert running.over
        running.stop("gone")
        pipe.room.set()

    order, error = run(lambda: [1, 0.01], go, Settings())
    assert order == ["open", says(1), "closed", "done"]
    assert error is None


def test_an_end_that_nobody_takes_is_given_up() -> None:
    async def fill(_: Running, pipe: Pipe) -> None:
        await moment(0.005)
        pipe.room.clear()

    order, error = run(lambda: [1, 0.01], fill)
    assert order == ["open", says(1), "closed"]
    assert isinstance(error, asyncio.CancelledError)


def test_a_comment_never_follows_the_end() -> None:
    async def work() -> list[str]:
        pipe = Pipe()
        wire = Sse(pipe.send, [])
        await wire.open()
        await wire.close(True)
        await wire.comment()
        return pipe.order

    assert asyncio.run(work()) == ["open", "done"]


def test_a_comment_that_fails_does_not_end_the_watch() -> None:
    async def fail(_: Running, pipe: Pipe) -> None:
        await moment()
        pipe.fails = True

    order, error = run(lambda: [1, 0.2, 2], fail)
    assert error is None
    assert order[-1] == "done"
