"""A local Ray cluster behind the server: sticky prefixes, errors, cancels, more replicas under load, a swap."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")

from openbook.chat import Call, Delta, Message, Sampling, Scripted, collect
from openbook.errors import Busy, InputError, OpenbookError, RemoteError, TooLong
from openbook.serve import cluster
from openbook.serve.cluster import Fault, Scale
from openbook.serve.run import background
from openbook.serve.served import Served

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module", autouse=True)
def joined() -> Iterator[None]:
    """One small cluster for all."""
    cluster.join(cpus=4)
    yield
    cluster.leave()


class Telling(Scripted):
    """Says which process it is, or what it is told to; notes down in a file how each of its streams ended."""

    def __init__(self, word: str, pace: float, notes: str) -> None:
        super().__init__(self.reply, pace=pace, forever=True)
        self.word, self.notes = word, notes

    def reply(self, call: Call) -> list[str | Delta | Exception]:
        """By what the last message says."""
        said = call.messages[-1].content or ""
        if said == "fail":
            return [TooLong("The conversation has 9 tokens and the context holds 8.")]
        if said == "long":
            return ["x"] * 1000
        if said.startswith("home"):
            return [f"{self.word}:{os.getpid()} ", *["x "] * 400]
        return [f"{self.word}:{os.getpid()} "] * 4


class Noting(Telling):
    """The same, which also notes down who left."""

    async def _say(self, call: Call, heard: int) -> Any:
        stream = Scripted._say(self, call, heard)
        try:
            async for delta in stream:
                yield delta
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
            with Path(self.notes).open("a") as file:
                file.write(f"{call.ended}\n")


def make(word: str, pace: float, notes: str) -> list[Served]:
    """What a replica makes."""
    return [Served(name="m", endpoint=Noting(word, pace, notes))]


def broken() -> list[Served]:
    """What cannot be made."""
    raise OpenbookError("There is no folder 'nowhere'.")


def deployed(tmp_path: Path, word: str = "old", pace: float = 0.0, **scale: Any) -> Served:
    (served,) = cluster.deploy(partial(make, word, pace, str(tmp_path / "notes")), Scale(**scale))
    return served


def ask(http: httpx.Client, text: str, system: str = "") -> str:
    """One answer, whole."""
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]
    reply = http.post("/v1/chat/completions", json={"model": "m", "messages": messages})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)


def until(there: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def test_errors_travel_as_values() -> None:
    for error in (TooLong("a"), Busy("b", 3.0), InputError("c"), OpenbookError("d")):
        again = Fault.of(error).error()
        assert type(again) is type(error)
        assert str(again) == str(error)
    again = Fault.of(Busy("b", 3.0)).error()
    assert isinstance(again, Busy)
    assert again.retry_after == 3.0
    assert type(Fault("Exception", "x", 1.0).error()) is OpenbookError


def test_sticky_errors_cancels_and_the_end(tmp_path: Path) -> None:
    served = deployed(tmp_path, pace=0.01, least=2, most=2)
    endpoint = served.endpoint
    assert isinstance(endpoint, cluster.Replicas)
    with background([served]) as listener, client(listener.port) as http:
        systems = [f"You are number {n}. " + "Be kind. " * 60 for n in range(6)]
        homes = {system: ask(http, "hi", system) for system in systems}
        assert len(set(homes.values())) == 2  # both have something to do
        for turn in range(3):
            for system in systems:
                assert ask(http, f"and {turn}", system) == homes[system]  # where it began
        assert (
            http.post(
                "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "fail"}]}
            ).json()["error"]["code"]
            == "context_length_exceeded"
        )
        body = {"model": "m", "messages": [{"role": "user", "content": "long"}], "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            next(reply.iter_lines())
        until(lambda: "closed" in (tmp_path / "notes").read_text())  # who leaves has stopped the work on the replica
        until(lambda: endpoint.ongoing == 0)
        assert 'openbook_engine_replicas{model="m"} 2.0' in http.get("/metrics").text
        embedded = http.post("/v1/embeddings", json={"model": "m", "input": "hello"}).json()
        assert len(embedded["data"][0]["embedding"]) == 64
    endpoint.close()


async def begun(endpoint: cluster.Replicas, text: str) -> tuple[str, AsyncIterator[Delta]]:
    """The first words of a long answer, which goes on."""
    stream = endpoint.chat([Message.system("Be kind. " * 100), Message.user(text)])
    return (await anext(stream)).text.strip(), stream


def test_long_answers_count_for_as_long_as_they_run(tmp_path: Path) -> None:
    endpoint = deployed(tmp_path, pace=0.1, least=2, most=2).endpoint
    assert isinstance(endpoint, cluster.Replicas)

    async def work() -> None:
        there = [await begun(endpoint, f"home {number}") for number in range(9)]
        assert len({home for home, _ in there}) == 1  # where the prefix is
        await asyncio.sleep(11)  # Ray forgets what it knew of queues after ten
        there.append(await begun(endpoint, "home 9"))
        assert there[-1][0] != there[0][0]  # 9 at work against none: too many to wait behind
        for _, stream in there:
            await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(work())
    endpoint.close()


def test_a_replica_that_dies_is_said_and_replaced(tmp_path: Path) -> None:
    served = deployed(tmp_path, pace=0.1, least=2, most=2)
    endpoint = served.endpoint
    assert isinstance(endpoint, cluster.Replicas)

    async def work() -> None:
        home, stream = await begun(endpoint, "home")
        os.kill(int(home.partition(":")[2]), signal.SIGKILL)
        with pytest.raises(RemoteError, match="A replica of 'm' was lost"):
            async for _ in stream:
                pass
        for _ in range(10):
            assert (await collect(endpoint.chat([Message.user("hi")]))).text.startswith("old")

    asyncio.run(work())
    assert endpoint.ongoing == 0
    until(lambda: endpoint.gauges()["replicas"] == 2)
    with background([served]) as listener, client(listener.port) as http:
        endpoint.close()
        assert http.get("/metrics").status_code == 200  # of a model that is no more
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 502


def test_more_replicas_under_load(tmp_path: Path) -> None:
    served = deployed(tmp_path, pace=0.2, least=1, most=3, target=2.0, upscale_seconds=0.5, downscale_seconds=600.0)
    endpoint = served.endpoint
    assert isinstance(endpoint, cluster.Replicas)

    async def load() -> None:
        async def talk(number: int) -> None:
            end = time.monotonic() + 40
            while time.monotonic() < end and endpoint.gauges()["replicas"] < 2:
                await collect(endpoint.chat([Message.user(f"{number} " * 300)], Sampling()))

        await asyncio.gather(*(talk(number) for number in range(12)))

    assert endpoint.gauges()["replicas"] == 1
    asyncio.run(load())
    assert endpoint.gauges()["replicas"] >= 2
    endpoint.close()


def test_a_swap_drops_nothing_and_mixes_nothing(tmp_path: Path) -> None:
    old = deployed(tmp_path, "old", 0.02)
    with background([old]) as listener:
        listener.server.load = lambda _, path: [deployed(tmp_path, path, 0.02)]
        said: list[str] = []
        over = threading.Event()

        def talk() -> None:
            with client(listener.port) as http:
                while not over.is_set():
                    said.append(ask(http, "hi"))

        people = [threading.Thread(target=talk) for _ in range(3)]
        for person in people:
            person.start()
        with client(listener.port) as http:
            until(lambda: len(said) > 3)
            assert http.post("/v1/models/m/swap", json={"path": "new"}).status_code == 200
            assert ask(http, "hi").startswith("new")
            more = len(said)
            until(lambda: len(said) > more + 6)
        over.set()
        for person in people:
            person.join(60)
        words = [{part.partition(":")[0] for part in answer.split()} for answer in said]
        assert all(len(one) == 1 for one in words)
        assert set.union(*words) == {"old", "new"}
        assert len(set(said)) == 2
        server = listener.server
        until(lambda: not server._besides)  # the old replicas are gone
        made = server.models.find("m").endpoint
    assert isinstance(made, cluster.Replicas)
    made.close()


def test_what_does_not_load_says_why() -> None:
    with pytest.raises(OpenbookError, match="no folder 'nowhere'"):
        cluster.deploy(broken, Scale())
