"""Many people at once who ask for all sorts of things, and some of whom leave at any moment."""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from openbook.chat.engine import Engine
from tests.laws.served import emptied
from tests.serve.conftest import Serving
from tests.serve.raw import request, until

FINISH = re.compile(rb'"finish_reason":"(\w+)"')
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]}
WORDS = ["Once", "upon", "a", "time", "the fox", "crossed", "the river", "and nobody", "in the house", "knew"]


@dataclass
class Asked:
    """One request: where, what, and when its caller leaves (bytes it has read by then, or None)."""

    path: str
    body: dict[str, Any]
    leaves: int | None
    patience: float
    rude: bool

    @classmethod
    def by(cls, chance: random.Random) -> Asked:
        """Anything."""
        said = " ".join(chance.choice(WORDS) for _ in range(chance.choice([1, 3, 10, 60])))
        body: dict[str, Any] = {
            "model": "tiny", "stream": chance.random() < 0.6, "n": chance.choice([1, 1, 1, 2, 3]),
            "max_tokens": chance.choice([1, 5, 20, 60]), "seed": chance.randrange(1000),
            "temperature": chance.choice([0.0, 1.0]), "user": "somebody",
        }  # fmt: skip
        kind = chance.randrange(5)
        if kind == 0:
            body["stop"] = chance.sample(["e", "th", "\n", "zebra"], 2)
        elif kind == 1:
            body["structured_outputs"] = {"json": SCHEMA}
        elif kind == 2:
            body["structured_outputs"] = {"regex": "[a-f]{4,12}"}
        elif kind == 3:
            body["ignore_eos"] = True
        chat = chance.random() < 0.5
        body |= {"messages": [{"role": "user", "content": said}]} if chat else {"prompt": said}
        leaves = chance.choice([None, None, None, 0, 0, 200, 1500])
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return cls(path, body, leaves, chance.choice([0.0, 0.01, 0.1]), chance.random() < 0.5)


@dataclass
class Crowd:
    """What became of all of them."""

    port: int
    seed: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    begun: int = 0

    async def ask(self, asked: Asked) -> None:
        """One of them: asks, and reads to the end or leaves before it."""
        self.begun += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        said = b""
        try:
            writer.write(request(asked.path, asked.body).replace(b"Host:", b"Connection: close\r\nHost:"))
            await writer.drain()
            while asked.leaves is None or len(said) < asked.leaves:
                part = await asyncio.wait_for(reader.read(1 << 14), 120)
                said += part
                if not part:
                    self._check(asked, said)
                    return
            await asyncio.sleep(asked.patience)
            self.ends["left"] += 1
        finally:
            if asked.rude:
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _check(self, asked: Asked, said: bytes) -> None:
        """Who stayed has a whole answer, with one end of each choice."""
        head, _, body = said.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        self.statuses[status] += 1
        assert status == 200, (asked, said[:600])
        choices: int = asked.body["n"]
        ends = FINISH.findall(body)
        assert len(ends) == choices, (asked, ends)
        if asked.body["stream"]:
            assert body.count(b"data: [DONE]\n\n") == 1
            assert body.endswith(b"0\r\n\r\n")
            assert b'"error"' not in body
        else:
            assert len(json.loads(body)["choices"]) == choices
        self.ends.update(end.decode() for end in ends)

    async def stay(self, many: int, seconds: float) -> None:
        """So many at once, who come again for so long (0: once)."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def one(number: int) -> None:
            chance = random.Random(f"{self.seed} {number}")
            while True:
                await self.ask(Asked.by(chance))
                if loop.time() >= end:
                    return

        async with asyncio.TaskGroup() as group:
            for number in range(many):
                group.create_task(one(number))


def at_rest(serving: Serving) -> Engine:
    """Nothing is at work behind a server any more, and all pages are back; its engine."""
    engine = serving.server.models.find("tiny").endpoint
    assert isinstance(engine, Engine)
    core = engine.core
    until(lambda: not core.jobs and not len(serving.server.board), "something is still at work")

    def books() -> int:
        core.scheduler.check()
        assert core.scheduler.idle
        return core.scheduler.pool.bytes - core.scheduler.pool.loose

    assert engine.live.call(books).result() == 0
    return engine


def gone(serving: Serving) -> None:
    """Every page of an engine that is at rest is free once its cache is emptied."""
    engine = at_rest(serving)
    engine.live.call(lambda: emptied(engine.core)).result()
