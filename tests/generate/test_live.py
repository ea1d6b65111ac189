"""The engine's thread: what raises in it ends who was concerned, with the cause; who reads slowly is held alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from openbook.errors import OpenbookError
from openbook.generate import live as living
from openbook.generate.engine import Engine
from openbook.generate.job import Job
from openbook.generate.live import AHEAD, FAILURES, Live
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling
from openbook.generate.settings import Settings
from tests.laws.served import draft_of, emptied

LONG = Sampling(max_tokens=480, temperature=1.0, seed=3, ignore_eos=True)
SHORT = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
PROMPT = [5, 6, 7]


def made(memory: int = 4 << 20, **settings: Any) -> Engine:
    return Engine(draft_of(131), Settings(memory=memory, **settings))


@pytest.fixture
def live() -> Iterator[Live]:
    one = Live(made())
    yield one
    one.close()
    assert not one.engine.jobs
    emptied(one.engine)


async def all_of(live: Live, prompt: list[int], sampling: Sampling = SHORT, **more: Any) -> tuple[Job, list[Token]]:
    job, tokens = None, []
    async with aclosing(live.stream(prompt, sampling, **more)) as stream:
        async for job, token in stream:  # noqa: B007
            tokens.append(token)
    assert job is not None
    return job, tokens


def failing(patch: pytest.MonkeyPatch, engine: Engine, error: BaseException, when: Callable[[int], bool]) -> None:
    """The choice of tokens raises, in the steps for which `when` says so: in the middle of a step."""
    choose, count = engine.chooser.choose, iter(range(1 << 30))

    def chosen(*args: Any) -> Any:
        if when(next(count)):
            raise error
        return choose(*args)

    patch.setattr(engine.chooser, "choose", chosen)


@pytest.mark.parametrize("error", [RuntimeError("the roof fell in"), MemoryError()], ids=["defect", "memory"])
def test_a_step_that_fails_ends_who_was_in_it_and_nobody_else(
    live: Live, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = live.engine.generate([PROMPT], SHORT)[0].ids
    failing(monkeypatch, live.engine, error, lambda count: count == 2)

    async def ask() -> None:
        job, tokens = await all_of(live, [9, 9], Sampling(max_tokens=40, n=3, seed=1, ignore_eos=True))
        assert [token.finish for token in tokens if token.finish] == ["error"] * 3
        assert sorted(token.choice for token in tokens if token.finish) == [0, 1, 2]
        for line in job.lines:
            assert line.result.error
            assert living.cause_of(error) in line.result.error
        _, tokens = await all_of(live, PROMPT)
        assert [token.id for token in tokens] == expected

    asyncio.run(ask())
    assert live.works
    live.engine.scheduler.check()


def test_failures_in_a_row_break_it_and_everything_ends_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made(rows=1)  # one runs, and the others wait
    live = Live(engine)
    failing(monkeypatch, engine, RuntimeError("the roof fell in"), lambda _: True)

    async def ask() -> None:
        found = await asyncio.gather(*(all_of(live, PROMPT) for _ in range(FAILURES + 4)))
        for job, tokens in found:
            assert [token.finish for token in tokens] == ["error"]
            assert "RuntimeError: the roof fell in" in str(job.lines[0].result.error)
        with pytest.raises(OpenbookError, match=r"stopped for good .RuntimeError: the roof fell in"):
            await all_of(live, PROMPT)

    asyncio.run(ask())
    assert not live.works
    assert live._thread is not None
    live._thread.join(10)
    assert not engine.jobs
    emptied(engine)


def test_a_success_between_failures_is_no_row(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, live.engine, RuntimeError("again"), lambda count: count % FAILURES != 0)

    async def ask() -> None:
        ends = [(await all_of(live, PROMPT))[1][-1].finish for _ in range(FAILURES * 3)]
        assert set(ends) == {"error"}

    asyncio.run(ask())
    assert live.works


def test_requests_that_cannot_be_served_stop_nobody_else(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who asks again, as clients do, for what makes a step fail."""
    choose, poison = live.engine.chooser.choose, 77

    def chosen(logits: Any, rows: Any) -> Any:
        if any(job.request.prompt[0] == poison and not sequence.paused for job in live.engine.jobs.values()
               for sequence in job.sequences.values() if sequence.state == "running"):  # fmt: skip
            raise RuntimeError("poison")
        return choose(logits, rows)

    monkeypatch.setattr(live.engine.chooser, "choose", chosen)

    async def ask() -> None:
        slow = live.stream(PROMPT, LONG)
        await anext(slow)
        while not live.call(lambda: live.engine.still).result():
            await asyncio.sleep(0.005)
        for _ in range(4 * FAILURES):
            assert (await all_of(live, [poison, 5]))[1][-1].finish == "error"
        assert (await all_of(live, PROMPT))[1][-1].finish == "length"
        assert len([token async for token in slow]) == 479  # it was held all the while

    asyncio.run(ask())
    assert live.works


@pytest.mark.parametrize("poisoned", [True, False], ids=["requests", "engine"])
def test_rows_that_fail_alone_are_failures_too(monkeypatch: pytest.MonkeyPatch, poisoned: bool) -> None:
    """As after an error that a device does not recover from: every row of every step fails, and no step raises."""
    live = Live(made())
    read = live.engine.reader.read

    def reading(works: Any) -> Any:
        if not poisoned or any(work.sequence.ids[0] == 77 for work in works):
            raise RuntimeError("device-side assert")
        return read(works)

    monkeypatch.setattr(live.engine.reader, "read", reading)

    async def ask() -> None:
        for _ in range(3 * FAILURES):
            if not live.works:
                break
            job, tokens = await all_of(live, [77, 5])
            assert tokens[-1].finish == "error"
            assert "device-side assert" in str(job.lines[0].result.error)
            await asyncio.sleep(0.01)

    asyncio.run(ask())
    assert live.works == poisoned
    assert poisoned or "device-side assert" in live.ended
    live.close()
    emptied(live.engine)


def test_books_in_disorder_are_no_reason_to_leave_anybody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(made())

    def lost(*_: object) -> None:
        raise AssertionError("page 7 is nowhere")

    monkeypatch.setattr(live.engine.scheduler, "commit", lost)
    monkeypatch.setattr(live.engine.scheduler, "finish", lost)

    async def ask() -> None:
        job, tokens = await all_of(live, PROMPT)
        assert tokens[-1].finish == "error"
        assert "page 7 is nowhere" in str(job.lines[0].result.error)

    asyncio.run(ask())
    assert not live.works


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(made())
    failing(monkeypatch, live.engine, SystemExit(3), lambda count: count == 1)

    async def ask() -> None:
        job, tokens = await all_of(live, PROMPT)
        assert tokens[-1].finish == "error"
        assert "SystemExit: 3" in str(job.lines[0].result.error)

    asyncio.run(ask())
    assert not live.works
    live.close()
    emptied(live.engine)


def test_a_listener_that_raises_ends_its_own_request(live: Live) -> None:
    def raising(_: Token) -> None:
        raise ValueError("deaf")

    async def ask() -> None:
        deaf = live.call(partial(live.engine.submit, [8, 8], LONG, listener=raising))
        _, tokens = await all_of(live, PROMPT)
        assert tokens[-1].finish == "length"
        (result,) = deaf.result().generations
        assert result.finish == "error"
        assert "ValueError: deaf" in str(result.error)
        assert len(result.ids) == 1

    asyncio.run(ask())


def test_a_call_that_raises_is_its_callers_affair(live: Live) -> None:
    def raising() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        live.call(raising).result()
    assert asyncio.run(all_of(live, PROMPT))[1][-1].finish == "length"


def test_a_stream_that_is_closed_has_given_everything_back_before_the_next_step(live: Live) -> None:
    engine = live.engine

    async def ask() -> None:
        stream = live.stream(PROMPT, LONG)
        async for job, token in stream:  # noqa: B007
            if token.index == 5:
                break
        between, closed = threading.Event(), threading.Event()

        def stand() -> int:
            between.set()
            closed.wait(30)
            return engine.stats.steps

        steps = live.call(stand)
        between.wait(30)  # the engine stands between two steps
        await stream.aclose()
        last = live.call(
            lambda: (job.ended, engine.stats.steps, engine.scheduler.pool.bytes - engine.scheduler.pool.loose)
        )  # behind the cancel
        closed.set()
        ended, after, held = last.result()
        assert ended
        assert not held
        assert after - steps.result() <= 1

    asyncio.run(ask())


@pytest.mark.parametrize("choices", [1, 2])
def test_a_slow_reader_is_held_and_nobody_else(live: Live, choices: int) -> None:
    sampling = Sampling(max_tokens=480, temperature=1.0, seed=3, n=choices, ignore_eos=True)
    expected = [found.ids for found in live.engine.generate([PROMPT], sampling)]

    async def ask() -> None:
        async with aclosing(live.stream(PROMPT, sampling)) as stream:
            job, first = await anext(stream)
            while not live.call(lambda: live.engine.still).result():
                await asyncio.sleep(0.005)
            written = sum(len(line.result.ids) for line in job.lines)
            assert AHEAD < written <= AHEAD + 2 * choices
            for _ in range(3):
                assert (await all_of(live, [9, 9]))[1][-1].finish == "length"
            assert sum(len(line.result.ids) for line in job.lines) == written
            said: list[list[int]] = [[] for _ in range(choices)]
            said[first.choice].append(first.id)
            async for _, token in stream:
                said[token.choice].append(token.id)
        assert said == expected

    asyncio.run(ask())


def test_readers_that_are_held_keep_no_row_and_no_page_from_others() -> None:
    engine = made(rows=2, tokens=64)
    live = Live(engine)
    (expected,) = (found.ids for found in engine.generate([PROMPT], LONG))
    need = engine.scheduler.pool.cost(len(PROMPT) + 480, 0, engine.store.page)
    engine.scheduler.pool.memory = int(need * 1.2)  # hardly room for one

    async def ask() -> None:
        streams = [live.stream([*PROMPT, *more], LONG) for more in ([], [1], [2])]
        for stream in streams:
            await asyncio.wait_for(anext(stream), 20)
        assert (await asyncio.wait_for(all_of(live, [9, 9]), 20))[1][-1].finish == "length"
        rest = [token.id async for _, token in streams[0]]
        assert rest == expected[1:]
        for stream in streams:
            await stream.aclose()

    asyncio.run(ask())
    live.close()
    emptied(engine)


def test_who_is_held_ends_at_its_deadline_and_nothing_spins(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, count, clock = live.engine.step, 0, live.engine.clock

    def step() -> list[Token]:
        nonlocal count
        count += 1
        return steps()

    async def ask() -> None:
        async with aclosing(live.stream(PROMPT, LONG, timeout=60.0)) as stream:
            await anext(stream)
            while not live.call(lambda: live.engine.still).result():
                await asyncio.sleep(0.005)
            monkeypatch.setattr(live.engine, "step", step)
            await asyncio.sleep(0.3)
            assert count < 10
            live.engine.clock = lambda: clock() + 60.0
            while not live.engine.idle:
                await asyncio.sleep(0.05)
            last = [token async for _, token in stream][-1]
            assert last.finish == "deadline"

    asyncio.run(ask())


def test_who_listens_in_a_loop_that_has_ended_is_ended(live: Live) -> None:
    left = []

    async def leave() -> None:
        stream = live.stream(PROMPT, LONG)
        left.append(stream)
        await anext(stream)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    for _ in range(2000):
        if live.call(lambda: live.engine.idle).result():
            break
    assert live.engine.idle
    assert live.engine.stats.output_tokens < 480


def test_the_bound_can_fail(monkeypatch: pytest.MonkeyPatch, live: Live) -> None:
    """Seeded fault: nobody is held."""
    monkeypatch.setattr(living, "AHEAD", 1 << 20)

    async def ask() -> int:
        async with aclosing(live.stream(PROMPT, LONG)) as stream:
            job, _ = await anext(stream)
            while not live.engine.idle:
                await asyncio.sleep(0.005)
            return len(job.lines[0].result.ids)

    assert asyncio.run(ask()) == 480


def test_a_loop_is_woken_once_for_all_that_waits() -> None:
    """And a token that comes while others are handed over is not left behind."""

    async def ask() -> list[int]:
        loop = asyncio.get_running_loop()
        post, queue = living._Post(loop), asyncio.Queue[Token]()
        wakes: list[int] = []
        deliver = post._deliver
        post._deliver = lambda: (wakes.append(len(post._waiting)), deliver())  # type: ignore[method-assign,return-value]
        for index in range(5):
            post.send(queue, Token(0, 0, index, 1))
        assert [(await queue.get()).index for _ in range(5)] == list(range(5))
        sender = threading.Thread(target=lambda: [post.send(queue, Token(0, 0, n, 1)) for n in range(20_000)])
        sender.start()
        async with asyncio.timeout(30):
            assert [(await queue.get()).index for _ in range(20_000)] == list(range(20_000))
        sender.join()
        return wakes

    wakes = asyncio.run(ask())
    assert wakes[0] == 5
    assert sum(wakes) == 20_005


def test_who_reads_in_a_loop_that_has_ended_is_told_of(live: Live) -> None:
    loop = asyncio.new_event_loop()
    post = live.post(loop)
    assert live.post(loop) is post
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            post.send(asyncio.Queue(), Token(0, 0, 0, 1))
    other = asyncio.new_event_loop()
    live.post(other)
    other.close()
    assert loop not in live._posts
