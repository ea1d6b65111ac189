"""An engine under random work : memory stays flat, every page comes back, answers those of a request alone.

OPENBOOK_SOAK_SECONDS: how long (default 600).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from openbook.generate.engine import Engine
from openbook.generate.grammars import Regex
from openbook.generate.job import Job
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full
from tests.laws.adapters import KINDS
from tests.laws.served import emptied, engine_of

SECONDS = float(os.environ.get("OPENBOOK_SOAK_SECONDS", "600"))
WARM = 0.3  # of the time, before memory is looked at


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_of(token: int) -> bytes:
    return bytes([33 + token]) if 3 <= token < 93 else b""


def sampling_of(chance: random.Random) -> Sampling:
    kind = chance.choice(["greedy", "drawn", "choices", "beams", "structured"])
    tokens, seed = chance.randint(1, 20), chance.randint(0, 9999)
    match kind:
        case "greedy":
            return Sampling(max_tokens=tokens, temperature=0.0, logprobs=2)
        case "drawn":
            return Sampling(max_tokens=tokens, temperature=0.9, top_p=0.9, seed=seed, logprobs=0)
        case "choices":
            return Sampling(max_tokens=tokens, temperature=1.0, seed=seed, n=chance.randint(2, 4))
        case "beams":
            return Sampling(max_tokens=tokens, beams=3, n=2)
        case _:
            return Sampling(max_tokens=tokens, temperature=0.8, seed=seed, grammar=Regex("[0-9A-F]{4,30}"))


@pytest.mark.soak
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_minutes_of_random_work(name: str, tmp_path: Path) -> None:
    chance = random.Random(1)
    folder = next(kind for kind in KINDS if kind.name == name).folder(tmp_path)

    def made(**more: object) -> Engine:
        engine = engine_of(name, token_bytes=bytes_of, **more)
        engine.load_adapter("a", folder)
        return engine

    page = sum(group.nbytes for group in made().store.shape.groups)
    slot = made().store.shape.slot_bytes
    engine = made(memory=14 * page + 8 * slot, speculation="lookup", tokens=48, rows=8, waiting=24)
    beginnings = [[chance.randint(3, 100) for _ in range(36)] for _ in range(4)]
    open_: list[tuple[Job, list[int], Sampling, str | None]] = []
    end, warm = time.monotonic() + SECONDS / 2, time.monotonic() + SECONDS / 2 * WARM
    begun = compared = cancelled = 0
    memory = 0
    while time.monotonic() < end or open_:
        if time.monotonic() < end and len(open_) < 20 and chance.random() < 0.5:
            prompt = chance.choice(beginnings)[: chance.randint(1, 36)] + [chance.randint(3, 100) for _ in range(4)]
            asked = (prompt, sampling_of(chance), chance.choice([None, None, "a"]))
            try:
                job = engine.submit(prompt, asked[1], adapter=asked[2], tenant=chance.choice("xy"))
                open_.append((job, *asked))
                begun += 1
            except Full:
                pass
        if open_ and chance.random() < 0.02:
            engine.cancel(chance.choice(open_)[0])
            cancelled += 1
        engine.step()
        for entry in [entry for entry in open_ if entry[0].ended]:
            open_.remove(entry)
            job, prompt, sampling, adapter = entry
            if any(one.finish == "cancelled" for one in job.generations):
                continue
            assert all(one.finish in ("stop", "length") for one in job.generations), job.generations
            if chance.random() < 0.1:
                alone = made(prefix_cache=False).generate([prompt], sampling, adapter=adapter)
                assert [(one.ids, one.logprobs, one.score) for one in job.generations] == [
                    (one.ids, one.logprobs, one.score) for one in alone
                ]
                compared += 1
        if begun % 50 == 0:
            engine.scheduler.check()
        if not memory and time.monotonic() > warm:
            memory = resident()
    grown = resident() / memory - 1 if memory else 0.0
    print(
        f"\n{name}: {begun} requests, {cancelled} cancelled, {compared} compared, memory {grown:+.2%}, {engine.stats}"
    )
    assert compared
    assert grown < 0.05
    assert not engine.jobs
    assert not engine.reader.sourced
    emptied(engine)
