"""The log: a line for every request, which nothing from outside can break, and which says nothing that was said."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")

import httpx

from openbook.chat import Delta, Scripted, Usage
from openbook.serve.keys import new_key
from openbook.serve.logs import Log, for_people
from openbook.serve.settings import Settings
from tests.serve.conftest import Serving, Start

SECRET = "the launch is on tuesday"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "user": SECRET}
ANSWER = [Delta(text=SECRET), Delta(finish="stop", usage=Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3))]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO, count: int) -> list[dict[str, Any]]:
    """The lines of `count` requests; the last may be written a moment after its reply is there."""
    found: list[dict[str, Any]] = []
    for _ in range(300):
        found = [json.loads(line) for line in stream.getvalue().split("\n") if line]
        found = [line for line in found if line["event"] == "request"]
        if len(found) >= count:
            break
        time.sleep(0.01)
    assert len(found) == count
    return found


def logged(serving: Serving, stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    serving.server.log._stream = stream
    return stream


def test_a_line_says_who_what_and_how_it_ended(start: Start, tmp_path: Path) -> None:
    key, digest = new_key()
    (tmp_path / "keys.toml").write_text(f'[keys.alice]\nhash = "{digest}"\n')
    serving = start(Settings(port=0, api_keys=tmp_path / "keys.toml"), tiny=Scripted(ANSWER, ["a"] * 1000, pace=0.01))
    stream = logged(serving)
    bearer = {"Authorization": f"Bearer {key}"}
    serving.http.post("/v1/chat/completions", json=CHAT, headers=bearer | {"x-request-id": "mine"})
    asked = httpx.stream("POST", serving.v1 + "/chat/completions", json=CHAT | {"stream": True}, headers=bearer)
    with asked as reply:
        next(reply.iter_lines())
    good, left = lines(stream, 2)
    assert good["id"] == "mine"
    assert good["route"] == "POST /v1/chat/completions"
    assert (good["status"], good["caller"], good["model"]) == (200, "alice", "tiny")
    assert (good["prompt_tokens"], good["cached_tokens"], good["completion_tokens"]) == (7, 3, 2)
    assert good["finish"] == ["stop"]
    assert 0 < good["first"] <= good["seconds"]
    assert good["remote"].startswith("127.0.0.1:")
    assert abs(good["time"] - time.time()) < 60
    assert (left["status"], left["stopped"]) == (499, "gone")
    assert left["completion_tokens"] >= 1


def test_neither_prompts_nor_keys_are_logged(start: Start, tmp_path: Path) -> None:
    key, digest = new_key()
    (tmp_path / "keys.toml").write_text(f'[keys.alice]\nhash = "{digest}"\n')
    serving = start(Settings(port=0, api_keys=tmp_path / "keys.toml"), tiny=Scripted(ANSWER, ANSWER))
    stream = logged(serving)
    http, bearer = serving.http, {"Authorization": f"Bearer {key}"}
    http.post("/v1/chat/completions", json=CHAT, headers=bearer)
    http.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=bearer)
    http.post("/v1/chat/completions", json=CHAT | {"temperature": SECRET}, headers=bearer)
    http.post("/v1/chat/completions", json=CHAT | {"model": SECRET}, headers=bearer)
    http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer wrong-{SECRET}"})
    http.get(f"/v1/models/{SECRET}?api_key={key}", headers=bearer)
    http.get(f"/{SECRET}", headers=bearer)
    lines(stream, 7)
    assert SECRET not in stream.getvalue()
    assert "tuesday" not in stream.getvalue()
    assert key not in stream.getvalue()


def test_prompts_are_logged_where_that_is_asked_for(start: Start) -> None:
    serving = start(Settings(port=0, log_prompts=True), tiny=Scripted(ANSWER))
    stream = logged(serving)
    serving.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    lines(stream, 1)
    asked = [json.loads(line) for line in stream.getvalue().splitlines() if '"asked"' in line]
    assert asked[0]["id"] == "mine"
    assert asked[0]["body"]["messages"][0]["content"] == SECRET


@pytest.mark.parametrize(
    "word", ["a\nb", 'x", "status": 200}\n{"event": "request"', "\x1b[2J", "\u2028", "\x85", "é\r"]
)
def test_nothing_from_outside_breaks_a_line(word: str) -> None:
    """Neither in JSON nor on a terminal; the seeded fault is a log that writes words as they come."""
    for stream in (io.StringIO(), Terminal()):
        Log(Settings(), stream).say("request", id=word, route=word, status=200, seconds=0.1, remote=word)
        written = stream.getvalue()
        assert len(written.splitlines()) == 1
        assert written.endswith("\n")
        assert "\x1b[2J" not in written
    assert json.loads(_json(word))["id"] == word
    naive = f"id={word}"
    assert len(naive.splitlines()) > 1 or not naive.isprintable()


def _json(word: str) -> str:
    stream = io.StringIO()
    Log(Settings(), stream).say("x", id=word)
    return stream.getvalue()


def test_ids_that_could_forge_are_replaced(start: Start) -> None:
    serving = start(tiny=Scripted())
    stream = logged(serving)
    for number in ("x" * 200, "caf\u00e9"):
        reply = serving.http.get("/v1/models", headers=[(b"x-request-id", number.encode())])
        assert reply.headers["x-request-id"].startswith("req-")
    assert {line["id"][:4] for line in lines(stream, 2)} == {"req-"}


def test_a_line_for_people() -> None:
    fields = {"id": "req-1", "route": "POST /v1/x", "status": 200, "seconds": 1.5, "caller": "", "finish": ["stop"]}
    assert for_people("request", fields, False)[8:] == " 200    1.500s POST /v1/x id=req-1 finish=stop"
    assert "\x1b[32m200\x1b[0m" in for_people("request", fields, True)
    failed = for_people("failure", {"id": "req-1", "error": "E", "trace": "one\ntwo\n"}, False)
    assert failed[8:] == " failure id=req-1 error=E\n    one\n    two"


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    Log(Settings(), stream).say("x")
