"""How much: rates and concurrency of a key, sizes, deadlines, slow and half-open connections."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")

import httpx

from openbook.chat import Delta, Scripted, Usage
from openbook.serve import server as server_module
from openbook.serve.errors import Rejected
from openbook.serve.keys import Key, new_key
from openbook.serve.limits import Limits, span
from openbook.serve.route import HUGE
from openbook.serve.run import Listener, background
from openbook.serve.served import Served
from openbook.serve.server import AT_ONCE
from openbook.serve.settings import Settings

KEY, DIGEST = new_key()
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@contextmanager
def serving(endpoint: Any, tmp_path: Path | None = None, limits: str = "", **settings: Any) -> Iterator[Listener]:
    """A server over one endpoint; with a path, behind a key with these limits."""
    if tmp_path is not None:
        (tmp_path / "keys.toml").write_text(f'[keys.alice]\nhash = "{DIGEST}"\n{limits}\n')
        settings["api_keys"] = tmp_path / "keys.toml"
    with background([Served(name="tiny", endpoint=endpoint)], Settings(port=0, **settings)) as listener:
        yield listener


def client(listener: Listener, key: str | None = KEY) -> httpx.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", headers=headers, timeout=30)


def ask(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json=CHAT | more)


# ------------------------------------------------------------------------------------------------ buckets


def test_a_bucket_fills_all_the_time() -> None:
    limits, key = Limits(), Key(name="a", hash="", requests_per_minute=60)
    for left in range(59, -1, -1):
        assert limits.take(key, 100.0)["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(Rejected) as refused:
        limits.take(key, 100.25)
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "1"
    assert refused.value.headers["x-ratelimit-reset-requests"] == "59.8s"
    limits.take(key, 101.0)
    with pytest.raises(Rejected):
        limits.take(key, 101.0)
    assert limits.take(key, 10_000.0)["x-ratelimit-remaining-requests"] == "59"  # it holds a minute's worth, no more


def test_tokens_are_paid_afterwards_and_debts_by_waiting() -> None:
    limits, key = Limits(), Key(name="a", hash="", tokens_per_minute=600)
    limits.take(key, 0.0)
    limits.charge(key, 900, 0.0)
    with pytest.raises(Rejected) as refused:
        limits.take(key, 0.0)
    assert refused.value.headers["Retry-After"] == "31"  # 300 of debt and the one that it needs, at 10 a second
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(Rejected):
        limits.take(key, 29.9)
    limits.take(key, 30.2)


def test_a_refused_request_takes_nothing() -> None:
    limits, key = Limits(), Key(name="a", hash="", requests_per_minute=2, tokens_per_minute=60)
    limits.charge(key, 100, 0.0)
    for _ in range(5):
        with pytest.raises(Rejected):
            limits.take(key, 0.0)
    assert limits.take(key, 60.0)["x-ratelimit-remaining-requests"] == "1"


def test_a_reload_with_other_limits_keeps_what_was_used() -> None:
    limits = Limits()
    for _ in range(10):
        limits.take(Key(name="a", hash="", requests_per_minute=10), 0.0)
    with pytest.raises(Rejected):
        limits.take(Key(name="a", hash="", requests_per_minute=100), 0.0)
    assert limits.take(Key(name="b", hash="", requests_per_minute=10), 0.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0ms"), (0.85, "850ms"), (1.5, "1.5s"), (59.96, "1m0s"), (360, "6m0s"), (61.5, "1m1.5s")]
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said


# ------------------------------------------------------------------------------------------------ of a key, over HTTP


def test_rates_over_http(tmp_path: Path) -> None:
    limits = "requests_per_minute = 2\ntokens_per_minute = 1000"
    with serving(Scripted(*["Hello."] * 9), tmp_path, limits) as listener, client(listener) as http:
        first = ask(http)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
            reply.read()
            used = first.json()["usage"]["total_tokens"]
            assert used > 0
            assert int(reply.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(1000 - used, abs=20)
        refused = ask(http)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert http.get("/v1/models").status_code == 200  # what costs nothing is not counted


def test_who_leaves_before_the_end_pays_for_what_was_written(tmp_path: Path) -> None:
    endless = Scripted(["word "] * 100_000, pace=0.001)
    with serving(endless, tmp_path, "tokens_per_minute = 100000") as listener, client(listener) as http:
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
            lines = reply.iter_lines()
            for _ in range(50):
                next(lines)
        bucket = listener.server.gate.limits
        for _ in range(200):
            if bucket.working:
                time.sleep(0.01)
        spent = 100_000 - bucket._buckets["alice", "tokens"].level
        assert 25 <= spent < 5000


def test_concurrency_of_a_key(tmp_path: Path) -> None:
    slow = Scripted(*[["a"] * 1000] * 3, pace=0.01)
    with serving(slow, tmp_path, "concurrent = 1") as listener, client(listener) as http:
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}), client(listener) as other:
            refused = ask(other)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        for _ in range(500):
            if not listener.server.gate.limits.working:
                break
            time.sleep(0.01)
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
            assert reply.status_code == 200


def test_as_many_at_once_as_the_server_takes() -> None:
    slow = Scripted(*[["a"] * 1000] * 3, pace=0.01)
    with (
        serving(slow, requests=1) as listener,
        client(listener, None) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}),
    ):
        refused = ask(http)
        assert refused.status_code == 429
        assert "retry-after" in refused.headers


def test_the_queue_of_an_engine_is_bounded_to_the_caller(engine: Any) -> None:
    """More prompts than may wait: 429 that says when to come again, and all that were taken are answered."""
    scheduler = engine.core.scheduler
    before = scheduler.waiting_limit, scheduler.rows
    scheduler.waiting_limit, scheduler.rows = 2, 1

    async def story(port: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            body = CHAT | {"max_tokens": 16, "ignore_eos": True}
            return await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(8)))

    try:
        with serving(engine) as listener:
            replies = asyncio.run(story(listener.port))
    finally:
        scheduler.waiting_limit, scheduler.rows = before
    good = [reply for reply in replies if reply.status_code == 200]
    busy = [reply for reply in replies if reply.status_code == 429]
    assert len(good) + len(busy) == 8
    assert good
    assert busy
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in busy)
    assert all(reply.json()["usage"]["completion_tokens"] == 16 for reply in good)


# ------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize("asked", [{"timeout": 0.2}, {}])
def test_what_is_not_done_in_time_ends(asked: dict[str, float]) -> None:
    """Also where the endpoint never looks at the clock."""
    slow = Scripted(["a"] * 1000, ["b"] * 1000, pace=0.05)
    with serving(slow, timeout=None if asked else 0.2) as listener, client(listener, None) as http:
        late = ask(http, **asked)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "timeout"
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True} | asked) as reply:
            assert reply.status_code == 200
            events = [line for line in reply.iter_lines() if line.startswith("data: ")]
        assert json.loads(events[-1][6:])["error"]["code"] == "timeout"
        assert '"b"' in events[0]
        assert [call.ended for call in slow.calls] == ["closed", "closed"]
        assert b'openbook_cancels_total{reason="timeout"} 2.0' in listener.server.metrics.page()


# ------------------------------------------------------------------------------------------------ sizes and slowness


@contextmanager
def raw(listener: Listener) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=10)) as made:
        yield made


def said(connection: socket.socket) -> bytes:
    """All until the other end closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_a_body_too_large_is_refused_whole_or_in_chunks() -> None:
    with serving(Scripted("Hello."), body=10_000, body_seconds=5) as listener, client(listener, None) as http:
        large = json.dumps(CHAT | {"user": "x" * 20_000}).encode()
        kind = {"content-type": "application/json"}
        assert http.post("/v1/chat/completions", content=large, headers=kind).status_code == 413
        pieces = (large[at : at + 999] for at in range(0, len(large), 999))
        assert http.post("/v1/chat/completions", content=pieces, headers=kind).status_code == 413
        with raw(listener) as connection:  # before anything of it is read
            connection.sendall(HEAD + b"content-length: 10001\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        small = json.dumps(CHAT).encode()
        pieces = (small[at : at + 9] for at in range(0, len(small), 9))
        assert http.post("/v1/chat/completions", content=pieces, headers=kind).status_code == 200


def test_who_is_slow_is_not_waited_for() -> None:
    """Nothing at all, a half header, a header in drops, half a body, what nobody reads: each ends by itself."""
    with serving(Scripted("Hello."), body_seconds=0.3) as listener:
        with raw(listener) as connection:
            assert said(connection) == b""
        with raw(listener) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: loc")
            assert said(connection).startswith(b"HTTP/1.1 408")
        with raw(listener) as connection:
            began = time.monotonic()
            try:
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.02)
            except OSError:
                pass
            assert time.monotonic() - began < 3.5
        with raw(listener) as connection:
            connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        with raw(listener) as connection:  # a body that the route never asked for, in drops
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            try:
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.02)
            except OSError:
                pass
            assert time.monotonic() - began < 3.5
        with raw(listener) as connection:  # a second request that stops half way
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /health/li")
            assert said(connection).startswith(b"HTTP/1.1 408")


def test_a_header_is_bounded() -> None:
    with serving(Scripted("Hello."), header=2000) as listener:
        for part in (b"x-long: " + b"y" * 3000, b"x: y\r\n" * 600, b"z" * 400_000):
            with raw(listener) as connection:
                try:
                    connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n" + part)
                    connection.sendall(b"\r\n\r\n")
                except OSError:
                    pass  # it is closed already
                assert said(connection)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
        with raw(listener) as connection:
            connection.sendall(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert said(connection).startswith(b"HTTP/1.1 431")
        with raw(listener) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 1500 + b"\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_told_so() -> None:
    with serving(Scripted("Hello.")) as listener:
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"HELLO WORLD / HTTP/9.9\r\n\r\n"):
            with raw(listener) as connection:
                connection.sendall(garbage)
                assert said(connection).startswith(b"HTTP/1.1 400")
        with raw(listener) as connection:  # a WebSocket that begins with a body
            upgrade = b"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 9\r\n\r\n"
            connection.sendall(b"GET /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + upgrade)
            assert said(connection).startswith(b"HTTP/1.1 400")
        with raw(listener) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert b" 400 " in said(connection)[:14]


def test_trailers_are_bounded() -> None:
    small = {"header": 1000, "body": 1000, "body_seconds": 5}
    with serving(Scripted("Hello."), **small) as listener, raw(listener) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        sent = 0
        try:
            while sent < 10_000_000:
                sent += connection.send(b"x-more: " + b"y" * 1000 + b"\r\n")
        except OSError:
            pass
        assert sent < 10_000_000


def test_connections_are_bounded() -> None:
    with serving(Scripted("Hello."), connections=3) as listener:
        with raw(listener), raw(listener), raw(listener) as third:
            third.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert third.recv(1000).startswith(b"HTTP/1.1 200")
            with raw(listener) as fourth:
                assert said(fourth).startswith(b"HTTP/1.1 503")
        for _ in range(100):
            with raw(listener) as again:
                again.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                if said(again).startswith(b"HTTP/1.1 200"):
                    break
        else:
            pytest.fail("those who went are still counted")


def test_the_host_of_a_first_line_counts() -> None:
    """`GET http://name/path` is for that name, whatever the header says (RFC 9112, 3.2.2)."""
    with serving(Scripted("Hello.")) as listener:
        for line, status in (
            (b"http://evil.example/health/live", b"421"),
            (b"http://localhost:8000/health/live", b"200"),
            (b"http://[::1]:8000/health/live", b"200"),
            (b"/health/live", b"200"),
        ):
            with raw(listener) as connection:
                connection.sendall(b"GET " + line + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                assert said(connection)[9:12] == status, line
        with raw(listener) as connection:
            connection.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
            assert said(connection)[9:12] == b"421"


def test_usage_of_an_endpoint_is_what_is_charged(tmp_path: Path) -> None:
    usage = Usage(prompt_tokens=700, completion_tokens=200)
    endpoint = Scripted([Delta(text="Hi"), Delta(finish="stop", usage=usage)], "Hello.")
    with serving(endpoint, tmp_path, "tokens_per_minute = 900") as listener, client(listener) as http:
        assert ask(http).status_code == 200
        refused = ask(http)
        assert refused.status_code == 429
        assert "900 tokens per minute" in refused.json()["error"]["message"]


def test_huge_requests_wait_for_their_like_and_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends nothing but what takes long to read keeps no other request from being read."""
    held, reading = threading.Event(), threading.Semaphore(0)
    honest = server_module.read

    def slow(body: bytes, kind: type[Any]) -> Any:
        if len(body) >= HUGE:
            reading.release()
            held.wait(30)
        return honest(body, kind)

    monkeypatch.setattr(server_module, "read", slow)

    def ask(size: int) -> int:
        asked = CHAT | {"user": "a" * size}
        return httpx.post(f"http://127.0.0.1:{listener.port}/v1/chat/completions", json=asked, timeout=30).status_code

    with serving(Scripted(*["Hello."] * 10)) as listener, ThreadPoolExecutor(8) as pool:
        huge = [pool.submit(ask, HUGE) for _ in range(8)]
        try:
            for _ in range(AT_ONCE):
                assert reading.acquire(timeout=10)
            assert ask(20) == ask(20_000) == 200
            assert not reading.acquire(timeout=0.05)  # no more of them than that are read
        finally:
            held.set()
        assert {one.result(30) for one in huge} == {200}
