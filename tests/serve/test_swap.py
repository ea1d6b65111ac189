"""Another model behind a name while requests run: none is dropped, none is answered by two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx
import pytest

from openbook.chat import Scripted
from openbook.errors import CheckpointError
from openbook.serve.run import background
from openbook.serve.served import Served


class Closed(Scripted):
    """A script that knows whether it was closed, and by then must not be at work."""

    closed = False

    def close(self) -> None:
        """The end."""
        assert all(call.ended for call in self.calls), "closed while it ran"
        self.closed = True


def speaking(word: str) -> Closed:
    """Says a word over and over, a little at a time."""
    return Closed([word] * 8, pace=0.01, forever=True)


def ask(http: httpx.Client) -> str:
    """One answer, whole."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


@pytest.mark.slow
def test_no_request_is_dropped_and_none_is_mixed() -> None:
    old, new = speaking("old"), speaking("new")
    with background([Served(name="m", endpoint=old)]) as listener:
        listener.server.load = lambda name, path: [Served(name=name, endpoint=new)] if path == "new" else []
        said: list[str] = []
        over = threading.Event()

        def talk() -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", timeout=30) as http:
                while not over.is_set():
                    said.append(ask(http))

        people = [threading.Thread(target=talk) for _ in range(4)]
        for person in people:
            person.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", timeout=30) as http:
            _until(lambda: len(said) >= 4)
            assert http.post("/v1/models/m/swap", json={"path": "new"}).status_code == 200
            assert ask(http) == "new" * 8  # from now on
            _until(lambda: old.closed)
            more = len(said)
            _until(lambda: len(said) >= more + 4)
        over.set()
        for person in people:
            person.join(30)
    assert set(said) == {"old" * 8, "new" * 8}
    assert not new.closed


def test_what_does_not_load_changes_nothing() -> None:
    def load(_: str, path: str) -> list[Served]:
        raise CheckpointError(f"There is no folder '{path}'.")

    old = speaking("old")
    with (
        background([Served(name="m", endpoint=old)]) as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", timeout=30) as http,
    ):
        listener.server.load = load
        reply = http.post("/v1/models/m/swap", json={"path": "nowhere"})
        assert reply.status_code == 400
        assert "no folder 'nowhere'" in reply.json()["error"]["message"]
        assert ask(http) == "old" * 8
        assert http.post("/v1/models/other/swap", json={"path": "x"}).status_code == 404
        listener.server.load = None
        assert http.post("/v1/models/m/swap", json={"path": "x"}).status_code == 400


def test_adapters_are_not_lost() -> None:
    adapter = Served(name="poems", endpoint=speaking("rhyme"), parent="m")
    old, made = speaking("old"), [Served(name="m", endpoint=speaking("new"))]
    with (
        background([Served(name="m", endpoint=old), adapter]) as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", timeout=30) as http,
    ):
        listener.server.load = lambda *_: made
        assert http.post("/v1/models/poems/swap", json={"path": "x"}).status_code == 400
        reply = http.post("/v1/models/m/swap", json={"path": "x"})
        assert reply.status_code == 409
        assert "poems" in reply.json()["error"]["message"]
        assert ask(http) == "old" * 8
        made.append(Served(name="poems", endpoint=speaking("verse"), parent="m"))
        assert http.post("/v1/models/m/swap", json={"path": "x"}).status_code == 200
        assert [one["id"] for one in http.get("/v1/models").json()["data"]] == ["m", "poems"]
        assert ask(http) == "new" * 8


def _until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
