"""WebSockets: the twin of every stream. What comes is what server-sent events bring, and nobody can do harm."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs a client of WebSockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from openbook.chat.scripted import Scripted
from openbook.serve.keys import new_key
from openbook.serve.settings import Settings
from tests.serve.conftest import Serving, Start

CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = ASKED | {"stream": True}


def opened(serving: Serving, path: str = CHAT, **more: Any) -> ClientConnection:
    """A socket at a path."""
    return connect(f"ws://127.0.0.1:{serving.port}{path}", compression=None, **more)


def answer(socket: ClientConnection, asked: dict[str, Any] | str) -> list[Any]:
    """Everything up to the end of an answer in chunks."""
    socket.send(asked if isinstance(asked, str) else json.dumps(asked))
    said = []
    while (message := socket.recv(timeout=10)) != "[DONE]":
        said.append(json.loads(message))
        if "error" in said[-1]:
            break
    return said


def plain(chunks: list[Any]) -> list[Any]:
    """Chunks without what is of one request alone."""
    return [{key: value for key, value in chunk.items() if key not in ("id", "created")} for chunk in chunks]


def events(serving: Serving, path: str, asked: dict[str, Any]) -> list[Any]:
    """The same as server-sent events."""
    lines = serving.http.post(path, json=asked).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def until(true: Callable[[], bool]) -> None:
    """Waits for something that is soon the case."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_what_comes_is_what_events_bring(start: Start, path: str) -> None:
    serving = start(tiny=Scripted(["One ", "two ", "three."], forever=True))
    asked = STREAM if path == CHAT else {"model": "tiny", "prompt": "Count: ", "stream": True}
    asked = asked | {"stream_options": {"include_usage": True}}
    with opened(serving, path) as socket:
        first, second = answer(socket, asked), answer(socket, asked)
    assert plain(first) == plain(second) == plain(events(serving, path, asked))
    assert first[0]["id"] != second[0]["id"]
    assert len(first) == 4
    assert first[-1]["usage"]["completion_tokens"] == 14


def test_an_answer_in_one_piece_is_one_message(start: Start) -> None:
    serving = start(tiny=Scripted("Hello.", forever=True))
    with opened(serving) as socket:
        for _ in range(2):
            socket.send(json.dumps(ASKED))
            said = json.loads(socket.recv(timeout=10))
            assert said["object"] == "chat.completion"
            assert said["choices"][0]["message"]["content"] == "Hello."


def test_an_error_ends_an_answer_and_not_the_socket(start: Start) -> None:
    serving = start(tiny=Scripted("Fine.", ["half", RuntimeError("broken")], "Well."))
    with opened(serving) as socket:
        for wrong, code in (
            (STREAM | {"model": "other"}, "model_not_found"),
            (STREAM | {"temperature": 9}, "invalid_value"),
            (STREAM | {"colour": "red"}, "unknown_parameter"),
            ("not JSON", "invalid_json"),
            ("", "invalid_value"),
            ('{"type": "cancel", "more": 1}', "unknown_parameter"),
            ("[" * 100_000, "invalid_value"),
        ):
            (said,) = answer(socket, wrong)
            assert said["error"]["code"] == code
        assert len(answer(socket, STREAM)) == 1
        assert answer(socket, STREAM)[-1]["error"]["type"] == "server_error"
        assert answer(socket, STREAM)[0]["choices"][0]["delta"]["content"] == "Well."
    assert not serving.server.board


def test_cancel_stops_what_runs_and_the_next_may_follow(start: Start) -> None:
    script = Scripted(["tick "] * 1000, "After.", pace=0.02)
    serving = start(tiny=script)
    with opened(serving) as socket:
        socket.send('{"type": "cancel"}')  # of nothing
        socket.send(json.dumps(STREAM))
        socket.recv(timeout=10)
        socket.send('{"type": "cancel"}')
        while "error" not in (said := json.loads(socket.recv(timeout=10))):
            pass
        assert said["error"]["code"] == "cancelled"
        until(lambda: script.calls[0].ended == "closed")
        assert answer(socket, STREAM)[0]["choices"][0]["delta"]["content"] == "After."


@pytest.mark.parametrize("how", ["close", "drop"])
def test_closing_stops_the_work(start: Start, how: str) -> None:
    script = Scripted(["tick "] * 1000, pace=0.02)
    serving = start(tiny=script)
    with opened(serving, close_timeout=0.1) as socket:
        socket.send(json.dumps(STREAM))
        socket.recv(timeout=10)
        if how == "close":
            socket.close()
        else:
            socket.socket.close()
        until(lambda: not serving.server.board and script.calls[0].ended == "closed")


def _read_on(socket: ClientConnection) -> None:
    while True:
        socket.recv(timeout=10)


@pytest.mark.parametrize(("message", "code"), [(b"\x00\x01", 1003), ("x" * 5000, 1009), (json.dumps(STREAM), 1008)])
def test_what_cannot_be_taken_closes_the_socket(start: Start, message: str | bytes, code: int) -> None:
    script = Scripted(["tick "] * 1000, pace=0.02)
    serving = start(Settings(port=0, body=4096), tiny=script)
    with opened(serving) as socket:
        socket.send(json.dumps(STREAM))
        socket.recv(timeout=10)
        socket.send(message)  # while the answer runs, the last of the three is one too many
        with pytest.raises(ConnectionClosed) as closed:
            _read_on(socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code
    until(lambda: not serving.server.board and script.calls[0].ended == "closed")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/v1/models", {}, 405), ("/nothing", {}, 404), (CHAT, {"Host": "evil.example"}, 421)],
)
def test_who_may_not_is_refused_before_the_handshake(
    start: Start, path: str, headers: dict[str, str], status: int
) -> None:
    serving = start(tiny=Scripted())
    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(_knock(serving, path, headers))
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["message"]


async def _knock(serving: Serving, path: str, headers: dict[str, str]) -> None:
    """The host of the address is the Host header, whatever it leads to."""
    from websockets.asyncio.client import connect as knock

    host = headers.get("Host", f"127.0.0.1:{serving.port}")
    async with knock(f"ws://{host}{path}", host="127.0.0.1", port=serving.port):
        pass


def test_a_browser_is_given_a_protocol_back_that_is_not_its_key(start: Start) -> None:
    serving = start(tiny=Scripted("Hello."))
    with opened(serving, subprotocols=["openai-insecure-api-key.abc", "realtime"]) as socket:
        assert socket.subprotocol == "realtime"
        assert answer(socket, STREAM)


def test_a_key_comes_with_the_handshake_and_is_looked_at_for_every_request(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    secret, digest = new_key()
    file.write_text(f'[keys.alice]\nhash = "{digest}"\n')
    file.chmod(0o600)
    serving = start(Settings(port=0, api_keys=file), tiny=Scripted("Hello.", forever=True))
    with pytest.raises(InvalidStatus) as refused, opened(serving):
        pass
    assert refused.value.response.status_code == 401
    with opened(serving, subprotocols=["openbook", f"openai-insecure-api-key.{secret}"]) as socket:
        assert socket.subprotocol == "openbook"
        assert answer(socket, STREAM)
        file.write_text(f'[keys.bob]\nhash = "{new_key()[1]}"\n')
        serving.server.gate.reload()
        (said,) = answer(socket, STREAM)
        assert said["error"]["code"] == "invalid_api_key"


def test_no_work_while_the_server_stops(start: Start) -> None:
    serving = start(tiny=Scripted("Hello."))
    with opened(serving) as socket:
        serving.server.draining = True
        (said,) = answer(socket, STREAM)
    assert said["error"]["code"] == "unavailable"


def test_a_reader_that_does_not_read_is_dropped(start: Start) -> None:
    script = Scripted(["x" * 50_000] * 2000)
    serving = start(Settings(port=0, stall=0.4), tiny=script)
    with opened(serving, max_queue=1, close_timeout=0.1) as socket:
        socket.send(json.dumps(STREAM))
        until(lambda: bool(script.calls) and script.calls[0].ended == "closed")
        assert not serving.server.board
