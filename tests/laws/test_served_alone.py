"""Law 3: served == alone. What a request gets from the engine does not depend on what else the engine does.

For every registered decoder family, tokens and log-probabilities to the last bit: alone, among others, its prompt cut
anyhow, after a prefix hit, after preemption, as one of n choices, greedy and drawn. And against the slow reference,
which runs each row whole: the same tokens, log-probabilities within the bound of law 1.
"""

from __future__ import annotations

import pytest

from openbook.generate.engine import Engine
from openbook.generate.sampling import Sampling
from tests.laws.served import NAMES, Said, drawn, engine_of, greedy, prompts_of, reference, said

CLOSE = 2e-4  # of log-probabilities, between the paths of fp32
PAGE = 32


def alone(name: str, prompts: list[list[int]], sampling: Sampling) -> list[Said]:
    return [said(engine_of(name, prefix_cache=False), [prompt], sampling)[0] for prompt in prompts]


@pytest.mark.parametrize("name", NAMES)
def test_alone_is_the_reference(name: str) -> None:
    prompts = prompts_of(name, 2)
    for ours, theirs in zip(alone(name, prompts, greedy()), reference(name, prompts, greedy()), strict=True):
        assert ours.ids == theirs.ids
        assert max(abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True)) < CLOSE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampling", [greedy(), drawn()], ids=["greedy", "drawn"])
def test_batch_mates_chunks_and_prefix_hits_change_nothing(name: str, sampling: Sampling) -> None:
    prompts = prompts_of(name, 5, (40, 3, 12, 33, 9))
    expected = alone(name, prompts, sampling)
    assert said(engine_of(name), prompts, sampling) == expected
    assert said(engine_of(name, tokens=7, rows=3), prompts, sampling) == expected
    engine = engine_of(name, tokens=64)
    said(engine, prompts, sampling)
    assert said(engine, prompts, sampling) == expected
    if max(map(len, prompts)) > PAGE and not engine.start:  # an encoder-decoder's prompts are sources
        assert engine.stats.cached_tokens > 0


@pytest.mark.parametrize("name", NAMES)
def test_preemption_changes_nothing(name: str) -> None:
    prompts = prompts_of(name, 4, (31, 30, 31, 30))
    sampling = drawn(tokens=24)
    expected = alone(name, prompts, sampling)
    engine = engine_of(name)
    shape = engine.store.shape
    one = sum(group.nbytes for group in shape.groups) + (shape.source.nbytes if shape.source else 0)
    few = engine_of(name, memory=5 * one + 3 * shape.slot_bytes if shape.groups else 3 * shape.slot_bytes)
    assert said(few, prompts, sampling) == expected
    if shape.groups and not few.start and max(map(len, prompts)) + 12 > PAGE:  # what they write needs a second page
        assert few.stats.preemptions > 0


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_those_of_their_own_runs(name: str) -> None:
    """Choice c of a request with a seed is the same whether n is 3 or 5, and shares what its prompt wrote."""
    prompts = prompts_of(name, 2, (37, 6))
    three = said(engine_of(name), prompts, drawn(n=3))
    five = said(engine_of(name, tokens=16, rows=4), prompts, drawn(n=5))
    assert three[:3] == five[:3]
    assert three[3:] == five[5:8]
    assert three[0] == alone(name, prompts[:1], drawn())[0]
    assert len({choice.ids for choice in five}) > 5


def test_the_law_can_fail() -> None:
    """A prefix hit that takes one page of another prompt must show."""
    name = NAMES[0]
    prompts = prompts_of(name, 2, (70,))
    expected = alone(name, prompts, greedy())
    engine: Engine = engine_of(name)
    assert said(engine, prompts, greedy()) == expected
    first, second = (entry.pages[0] for entry in engine.scheduler.pool.entries.values())
    for pages in engine.store.pages.values():
        pages.copy([second], [first])
    assert said(engine, prompts[:1], greedy()) != expected[:1]
