"""What servers meet: engines that raise, clients that leave, linger, or talk nonsense, clocks that jump, full pipes."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import openbook as ob
from openbook.chat.engine import Engine
from openbook.chat.scripted import Scripted
from openbook.generate.live import FAILURES
from openbook.generate.settings import Settings as Sharing
from openbook.serve.run import background
from openbook.serve.served import Served
from openbook.serve.settings import Settings
from tests.laws.served import emptied
from tests.serve.conftest import Serving, Start, serving_of
from tests.serve.crowd import Crowd, at_rest, gone
from tests.serve.raw import CHAT, Raw, ask, asking, free, request, scripted, until

pytestmark = pytest.mark.slow  # each by itself is quick; together they are not

LONG: dict[str, Any] = {"max_tokens": 800, "ignore_eos": True, "temperature": 1.0}
SHORT: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True}


@pytest.fixture
def narrow(folder: Path) -> Iterator[Serving]:
    """A server over an engine of its own, which runs one request at a time."""
    with (
        ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="8MiB", settings=Sharing(rows=1)) as engine,
        serving_of({"tiny": engine}) as serving,
    ):
        engine.generate(["A"], ob.Sampling(max_tokens=1))  # whose operators may have to be compiled first
        yield serving


def engine_of(serving: Serving) -> Engine:
    engine = serving.server.models.find("tiny").endpoint
    assert isinstance(engine, Engine)
    return engine


# ------------------------------------------------------------------------------------------------ engines that raise


def breaks(monkeypatch: pytest.MonkeyPatch, engine: Engine, times: int) -> None:
    choose, count = engine.core.chooser.choose, iter(range(1 << 30))

    def chosen(*args: Any) -> Any:
        if next(count) < times:
            raise RuntimeError("the roof fell in")
        return choose(*args)

    monkeypatch.setattr(engine.core.chooser, "choose", chosen)


def test_an_engine_that_raises_once_goes_on(narrow: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, engine_of(narrow), 1)
    failed = narrow.http.post(CHAT, json=asking(stream=False, **SHORT))
    assert failed.status_code == 500
    assert "RuntimeError: the roof fell in" in failed.json()["error"]["message"]
    assert narrow.http.post(CHAT, json=asking(stream=False, **SHORT)).status_code == 200
    assert narrow.http.get("/health/ready").status_code == 200
    at_rest(narrow)


def test_an_engine_that_always_raises_is_reported_and_refused(narrow: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, engine_of(narrow), 1 << 30)
    for _ in range(FAILURES):
        assert narrow.http.post(CHAT, json=asking(stream=False, **SHORT)).status_code in (500, 503)
    until(lambda: engine_of(narrow).broken)
    for path, status in (("/health/live", 200), ("/health/ready", 503)):
        reply = narrow.http.get(path)
        assert reply.status_code == status
    assert "the roof fell in" in reply.json()["error"]["message"]
    refused = narrow.http.post(CHAT, json=asking(**SHORT))
    assert refused.status_code == 503
    assert "the roof fell in" in refused.json()["error"]["message"]


def test_an_engine_that_breaks_ends_streams_with_the_cause(narrow: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(narrow.port).ask(**LONG)
    raw.until(b"data: ")
    waits = [Raw(narrow.port).ask(**SHORT) for _ in range(FAILURES)]
    until(lambda: len(engine_of(narrow).core.jobs) == 1 + FAILURES)
    breaks(monkeypatch, engine_of(narrow), 1 << 30)
    for one in (raw, *waits):
        said = one.until(b"the roof fell in")
        assert b"[DONE]" not in said
        one.leave()
    assert not engine_of(narrow).core.jobs
    emptied(engine_of(narrow).core)


# ------------------------------------------------------------------------------------------------ clients that leave


@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("when", ["before", "begun", "waiting", "whole", "choices"])
def test_who_leaves_stops_the_work(narrow: Serving, when: str, rudely: bool) -> None:
    core = engine_of(narrow).core
    asked: dict[str, Any] = {
        "whole": {"stream": False},
        "choices": {"n": 3},
        "before": {"messages": [{"role": "user", "content": "Once upon a time " * 100}], "max_tokens": 200},
    }.get(when, {})
    mate = Raw(narrow.port).ask(**LONG) if when == "waiting" else None
    if mate is not None:
        mate.until(b"data: ")
    raw = Raw(narrow.port).ask(**LONG | asked)
    until(lambda: len(core.jobs) == 1 + (mate is not None))
    if when in ("begun", "choices"):
        raw.until(b"data: ")
    raw.leave(rudely=rudely)
    if mate is not None:
        until(lambda: len(core.jobs) == 1)
        assert b'"finish_reason":"length"' in mate.until(b"[DONE]")
        assert core.stats.output_tokens == 801
        mate.leave()
    at_rest(narrow)
    assert core.stats.output_tokens < 800 or mate is not None


def test_who_sends_no_more_has_left(narrow: Serving) -> None:
    raw = Raw(narrow.port).ask(**LONG)
    raw.until(b"data: ")
    raw.socket.shutdown(socket.SHUT_WR)
    assert b"[DONE]" not in raw.rest()
    at_rest(narrow)


def test_a_reader_that_stops_reading_is_dropped_and_its_work_stopped(folder: Path) -> None:
    with (
        ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="16MiB") as engine,
        serving_of({"tiny": engine}, Settings(port=0, stall=0.4)) as serving,
    ):
        raw = Raw(serving.port, buffer=4096).ask(**LONG, n=8, logprobs=True, top_logprobs=20)
        until(lambda: serving.server.board.by_id)
        (running,) = serving.server.board.by_id.values()
        until(lambda: running.sending is not None and time.monotonic() - running.sending > 0.2, "it is never full")
        held = engine.core.stats.output_tokens
        assert serving.http.post(CHAT, json=asking(stream=False, **SHORT)).status_code == 200  # who reads is served
        at_rest(serving)
        assert running.stopped == "stalled"
        assert engine.core.stats.output_tokens <= held + 300 + 4
        assert engine.core.stats.output_tokens < 8 * 800
        raw.leave()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system cannot")
@pytest.mark.slow
def test_a_reply_that_nobody_reads_does_not_keep_its_connection() -> None:
    script = Scripted("x" * (16 << 20))
    with background([Served(name="tiny", endpoint=script)], Settings(port=0, stall=0.5)) as listener:
        raw = Raw(listener.port, buffer=4096).ask(stream=False)
        until(lambda: script.calls and not len(listener.server.board))
        assert listener.server_state.connections
        until(lambda: not listener.server_state.connections, "it is still open")
        raw.leave()


def test_comments_come_while_nothing_else_does(start: Start) -> None:
    serving = start(Settings(port=0, keep_alive=0.05), tiny=Scripted(["a", "b"], pace=0.3))
    said = Raw(serving.port).ask().until(b"[DONE]")
    assert said.count(b": still here") >= 4
    assert said.index(b": still here") < said.index(b'"a"') < said.index(b'"b"')


# ------------------------------------------------------------------------------------------------ nonsense


NONSENSE = [
    b"\0" * 300,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS says hello
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
    b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_answered_or_closed_and_nobody_else_notices(start: Start, nonsense: bytes) -> None:
    serving = start(tiny=Scripted(["a"] * 20, pace=0.01))
    mate = Raw(serving.port).ask()
    raw = Raw(serving.port).say(nonsense)
    raw.socket.shutdown(socket.SHUT_WR)
    said = raw.rest()
    assert not said or said.startswith(b"HTTP/1.1 4"), said
    assert mate.until(b"[DONE]").count(b"data: ") == 21
    assert not len(serving.server.board)


def test_random_bytes(start: Start) -> None:
    serving, chance = start(tiny=Scripted("a")), random.Random(1)
    whole = request(CHAT, asking())
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        raw = Raw(serving.port).say(bytes(data[: chance.randint(1, len(data))]))
        raw.leave(rudely=chance.random() < 0.5)
    assert serving.http.get("/health/ready").status_code == 200
    until(lambda: not len(serving.server.board))


def test_requests_on_one_connection_are_answered_in_order(start: Start) -> None:
    serving = start(tiny=Scripted(["a", "b"], "second", ["c"] * 50, pace=0.02))
    three = request(CHAT, asking()) + request(CHAT, asking(stream=False)) + request(CHAT, asking())
    raw = Raw(serving.port).say(three)
    said = raw.until(b'"c"')
    assert said.index(b'"b"') < said.index(b"[DONE]") < said.index(b"second") < said.index(b'"c"')
    raw.leave()
    until(lambda: not len(serving.server.board))


def test_who_leaves_has_left_all_that_was_asked_for(start: Start) -> None:
    script = Scripted(*[["a"] * 200] * 3, pace=0.01)
    serving = start(tiny=script)
    raw = Raw(serving.port).say(request(CHAT, asking()) * 3)
    raw.until(b'"a"')
    raw.leave()
    until(lambda: not len(serving.server.board))
    assert [call.ended for call in script.calls] == ["closed"]


# ------------------------------------------------------------------------------------------------ clocks, pipes


def test_clocks_that_jump_change_nothing(narrow: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(narrow.port).ask(**LONG, timeout=60)
    raw.until(b"data: ")
    real = time.time
    for jump in (86400.0, -86400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert narrow.http.post(CHAT, json=asking(stream=False, timeout=30, **SHORT)).status_code == 200
    assert b'"finish_reason":"length"' in raw.until(b"[DONE]")


@pytest.mark.parametrize("reads", [True, False], ids=["closed", "full"])
def test_a_log_that_nobody_reads_is_no_reason_to_stop(reads: bool) -> None:
    inside, outside = os.pipe()
    with scripted(pace=0.0, pieces=3, port=(port := free()), stderr=outside) as serving:
        os.close(outside)
        if reads:  # and then goes away
            os.read(inside, 10)
            os.close(inside)
        until(lambda: answers(port))
        body = asking(stream=False) | {"user": "x" * 100}
        for _ in range(4):  # more than a pipe holds
            raw = Raw(port)
            many = request(CHAT, body) * 150
            threading.Thread(target=raw.say, args=(many,), daemon=True).start()
            while raw.heard.count(b"HTTP/1.1 200") < 150:
                part = raw.socket.recv(1 << 16)
                assert part
                raw.heard += part
            raw.leave()
        assert ask(port, "/health/ready")[0] == 200
        serving.signal()
        assert serving.ended() == 0
    if not reads:
        os.close(inside)


def answers(port: int) -> bool:
    """Whether somebody takes work there."""
    try:
        return ask(port, "/health/ready")[0] == 200
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------ all at once


def test_sixty_people_of_whom_many_leave(folder: Path) -> None:
    settings = Sharing(rows=16)
    with (
        ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="256KiB", settings=settings) as engine,
        serving_of({"tiny": engine}) as serving,
    ):
        crowd = Crowd(serving.port)
        asyncio.run(crowd.stay(60, 0))
        gone(serving)
        assert crowd.ends["left"] > 10
        assert crowd.statuses[200] + crowd.ends["left"] == crowd.begun == 60
        assert engine.core.stats.failures == 0


@pytest.mark.slow
def test_a_prompt_of_megabytes_stops_nobody_else(narrow: Serving) -> None:
    text = "The fox crossed the river and nobody in the house knew. " * 10_000

    def ask_all() -> None:
        for path, body in (
            (CHAT, asking() | {"messages": [{"role": "user", "content": text}]}),
            ("/v1/completions", {"model": "tiny", "prompt": text}),
        ):
            reply = narrow.http.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")

    asker = threading.Thread(target=ask_all)
    asker.start()
    others = 0
    while asker.is_alive():
        assert ask(narrow.port, "/health/live")[0] == 200
        others += 1
    assert others > 15
