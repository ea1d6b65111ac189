"""Law 6 on real models: a row that fails, a step that is interrupted; who goes on says what it would have said."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from openbook.generate.engine import Engine
from openbook.generate.job import Reading
from openbook.generate.plan import Work
from tests.laws.served import Said, drawn, engine_of, prompts_of, said

KINDS = ["llama", "mamba", "t5"]
Read = Callable[[Sequence[Work]], Reading]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_fails_leaves_nothing_in_the_prefix_cache(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = prompts_of(kind, 2, (43, 41))
    expected = said(engine_of(kind), [first, second], drawn())
    engine: Engine = engine_of(kind, tokens=40)
    bad = engine.submit(first, drawn())
    read: Read = engine.reader.read

    def failing(works: Sequence[Work]) -> Reading:
        if any(work.sequence.ask.key == bad.key for work in works):
            raise RuntimeError("broken")
        return read(works)

    monkeypatch.setattr(engine.reader, "read", failing)
    assert said(engine, [second], drawn()) == expected[1:]
    assert bad.ended
    assert [result.finish for result in bad.generations] == ["error"]
    monkeypatch.undo()
    assert said(engine, [first], drawn()) == expected[:1]
    engine.scheduler.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_an_interrupted_step_is_done_again(kind: str, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, sampling = prompts_of(kind, 3, (35, 20, 41)), drawn(n=3)
    expected = said(engine_of(kind), prompts, sampling)
    engine: Engine = engine_of(kind, tokens=40)
    jobs = [engine.submit(prompt, sampling) for prompt in prompts]
    read: Read = engine.reader.read
    calls = 0

    def interrupted(works: Sequence[Work]) -> Reading:
        nonlocal calls
        calls += 1
        reading = read(works) if late else None
        if calls % 3 == 2:
            raise KeyboardInterrupt
        return reading or read(works)

    monkeypatch.setattr(engine.reader, "read", interrupted)
    interrupts = 0
    for _ in range(400):
        if all(job.ended for job in jobs):
            break
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
        engine.scheduler.check()
    assert interrupts > 3
    assert [Said.of(result) for job in jobs for result in job.generations] == expected
    engine.scheduler.pool.forget_all()
    assert engine.scheduler.pool.bytes == 0
