"""The engine as Python sees it: what is taken and refused, who waits, streams, stats."""

from __future__ import annotations

import asyncio

import pytest

from openbook.errors import InputError, Refusal
from openbook.generate.engine import Engine
from openbook.generate.live import Live
from openbook.generate.loop import generate_ids
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full
from openbook.generate.settings import Settings
from tests.laws.served import drawn, emptied, engine_of, greedy, model_of, prompts_of

NAME = "llama"


def test_more_than_the_queue_takes() -> None:
    engine = engine_of(NAME, waiting=2, rows=2)
    prompts = prompts_of(NAME, 3)
    jobs = [engine.submit(prompt, greedy()) for prompt in prompts[:2]]
    with pytest.raises(Full, match="wait already") as caught:
        engine.submit(prompts[2], greedy())
    assert 0 < caught.value.retry_after <= 60
    engine.step()
    jobs.append(engine.submit(prompts[2], greedy()))
    while not engine.idle:
        engine.step()
    assert all(job.ended for job in jobs)
    emptied(engine)


def test_generate_brings_more_prompts_than_the_queue_takes() -> None:
    prompts = prompts_of(NAME, 12)
    engine = engine_of(NAME, waiting=2, rows=3)
    found = engine.generate(prompts, drawn(n=2))
    assert [(one.prompt, one.choice) for one in found] == [(i, c) for i in range(12) for c in range(2)]
    assert [one.ids for one in found] == [one.ids for one in engine_of(NAME).generate(prompts, drawn(n=2))]
    emptied(engine)


def test_tokens_come_as_they_are_written() -> None:
    engine = engine_of(NAME)
    heard: list[Token] = []
    job = engine.submit(prompts_of(NAME, 1)[0], greedy(), listener=heard.append)
    events = []
    while not engine.idle:
        events += engine.step()
    assert heard == events
    assert [token.id for token in heard] == job.generations[0].ids
    assert [token.index for token in heard] == list(range(12))
    assert [token.finish for token in heard] == [None] * 11 + ["length"]
    (loop,) = generate_ids(engine.model, prompts_of(NAME, 1), greedy())
    assert loop.ids == job.generations[0].ids


@pytest.mark.parametrize(
    ("prompt", "more", "error", "message"),
    [
        ([], {}, InputError, "is empty"),
        ([5] * 65, {}, InputError, "has 65 tokens and the context of this model holds 64: shorten it by 1"),
        ([5] * 64, {}, InputError, "no room for output"),
        ([5, 131], {}, InputError, "0 to 130"),
        ([5], {"adapter": "poet"}, InputError, "no adapter 'poet'"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    prompt: list[int], more: dict[str, str], error: type[Exception], message: str
) -> None:
    engine = engine_of(NAME)
    with pytest.raises(error, match=message):
        engine.submit(prompt, greedy(), **more)
    assert engine.idle
    emptied(engine)


def test_what_could_never_fit_is_said_at_once() -> None:
    engine = engine_of(NAME, memory=engine_of(NAME).store.shape.groups[0].nbytes)
    with pytest.raises(InputError, match="Give the engine more `memory`"):
        engine.submit([5] * 40, greedy())
    assert engine.generate([[5] * 10], greedy())[0].finish == "length"


def test_settings_are_checked() -> None:
    model = model_of(NAME)
    assert Engine(model, Settings(memory="3MiB")).memory == 3 << 20
    assert Engine(model, memory="0.5GiB").memory == 1 << 29
    for wrong in (
        {"kv": "int4"}, {"speculation": "magic"}, {"rows": 0}, {"tokens": 0}, {"page": 20}, {"memory": "many"},
    ):  # fmt: skip
        with pytest.raises(InputError):
            Engine(model, Settings(**{"memory": 8 << 20, **wrong}))  # type: ignore[arg-type]
    with pytest.raises((InputError, Refusal)):
        Engine(model, Settings(memory=8 << 20), draft=model_of("mamba"))


def test_stats_count() -> None:
    engine = engine_of(NAME)
    prompts = prompts_of(NAME, 2, (40, 12))
    engine.generate(prompts, greedy())
    stats = engine.stats.as_dict()
    assert stats["prompt_tokens"] == 52
    assert stats["output_tokens"] == 24
    assert stats["cached_tokens"] == 0
    engine.generate(prompts, greedy())
    assert engine.stats.cached_tokens == 32


def test_streams() -> None:
    engine = engine_of(NAME)
    live = Live(engine)
    prompts = prompts_of(NAME, 3)
    expected = [one.ids for one in generate_ids(engine.model, prompts, greedy())]

    async def one(prompt: list[int]) -> list[int]:
        return [token.id async for _, token in live.stream(prompt, greedy())]

    async def closed() -> None:
        stream = live.stream(prompts[0], Sampling(max_tokens=40, temperature=0.0, ignore_eos=True))
        async for job, _ in stream:  # noqa: B007
            break
        await stream.aclose()
        for _ in range(200):
            if job.ended:
                break
            await asyncio.sleep(0.01)
        assert job.ended
        assert job.generations[0].finish in ("cancelled", "length")

    async def everyone() -> list[list[int]]:
        found = await asyncio.gather(*(one(prompt) for prompt in prompts))
        await closed()
        with pytest.raises(InputError, match="is empty"):
            await one([])
        return list(found)

    try:
        assert asyncio.run(everyone()) == expected
    finally:
        live.close()
    emptied(engine)
