"""Law 3: served == alone. What a request gets from the engine does not depend on what else the engine does.

For every registered decoder family, tokens and log-probabilities to the last bit: alone, among others, its prompt cut
anyhow, after a hit, after preemption, as one of n choices, greedy and drawn. And against the slow reference, which
runs each row whole: the same tokens, log-probabilities within the bound of law 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from openbook.generate import packed, pages
from openbook.generate.engine import Engine
from openbook.generate.loop import generate_ids
from openbook.generate.packed import Packed
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Scheduler
from openbook.generate.speculate import Proposal
from openbook.nn import attentive
from tests.laws.adapters import KINDS
from tests.laws.served import (
    MARKED as FAMILIES,
)
from tests.laws.served import (
    PAIRS,
    Said,
    drawn,
    emptied,
    engine_of,
    greedy,
    preempt,
    prompts_of,
    reference,
    said,
)

FORMED = ["llama", "llama-biased-mqa", "gemma2", "mixtral", "mamba", "t5", "hybrid", "lstm", "luong-general-fed"]
MARKED = [*FAMILIES, pytest.param("shared", id="shared")]  # its blocks run again
CLOSE = 2e-4  # of log-probabilities, between the paths of fp32
PAGE = 32


def alone(name: str, prompts: list[list[int]], sampling: Sampling) -> list[Said]:
    return [said(engine_of(name, prefix_cache=False), [prompt], sampling)[0] for prompt in prompts]


@pytest.mark.parametrize("name", MARKED)
def test_alone_is_the_reference(name: str) -> None:
    prompts = prompts_of(name, 2)
    for ours, theirs in zip(alone(name, prompts, greedy()), reference(name, prompts, greedy()), strict=True):
        assert ours.ids == theirs.ids
        assert max(abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True)) < CLOSE


@pytest.mark.parametrize("name", MARKED)
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


@pytest.mark.parametrize("name", MARKED)
def test_preemption_changes_nothing(name: str) -> None:
    prompts = prompts_of(name, 4, (31, 30, 31, 30))
    sampling = drawn(tokens=24)
    expected = alone(name, prompts, sampling)
    engine = engine_of(name)
    shape = engine.store.shape
    one = sum(group.nbytes for group in shape.groups) + (shape.source.nbytes if shape.source else 0)
    few = engine_of(name, memory=5 * one + 3 * shape.slot_bytes)
    assert said(few, prompts, sampling) == expected
    if shape.groups and not few.start and max(map(len, prompts)) + 12 > PAGE:  # what they write needs a second page
        assert few.stats.preemptions > 0
    made = engine_of(name)  # and where memory would have sufficed: at every step, one after the other
    jobs = [made.submit(prompt, sampling) for prompt in prompts]
    count = 0
    for number in range(500):
        if made.idle:
            break
        made.step()
        count += preempt(made, jobs[number % len(jobs)]) if number < 24 else 0
    assert count > 4
    assert [Said.of(job.generations[0]) for job in jobs] == expected


@pytest.mark.parametrize("name", MARKED)
def test_choices_are_those_of_their_own_runs(name: str) -> None:
    """Choice c of a request with a seed is the same whether n is 3 or 5, and shares what its prompt wrote."""
    prompts = prompts_of(name, 2, (37, 6))
    three = said(engine_of(name), prompts, drawn(n=3))
    five = said(engine_of(name, tokens=16, rows=4), prompts, drawn(n=5))
    assert three[:3] == five[:3]
    assert three[3:] == five[5:8]
    assert three[0] == alone(name, prompts[:1], drawn())[0]
    assert len({choice.ids for choice in five}) > 5


@pytest.mark.parametrize("name", MARKED)
def test_a_page_that_differs_in_one_token_is_no_hit(name: str) -> None:
    (prompt,) = prompts_of(name, 1, (45,))
    other = [*prompt]
    other[5] += 1 if other[5] < 90 else -1
    engine = engine_of(name)
    said(engine, [prompt], greedy())
    assert said(engine, [other], greedy()) == alone(name, [other], greedy())
    assert engine.stats.cached_tokens == 0


def test_a_hit_ends_where_the_second_page_differs() -> None:
    prompt = prompts_of("hybrid", 1, (110,))[0]
    other = [*prompt]
    other[40] = (other[40] + 1) % 100 + 3
    for name in ("hybrid",):
        engine = engine_of(name)
        said(engine, [prompt], greedy())
        assert said(engine, [other], greedy()) == alone(name, [other], greedy())
        assert engine.stats.cached_tokens in (0, PAGE)  # a recurrent model needs a snapshot there


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("sampling", [greedy(20), drawn(20)], ids=["greedy", "drawn"])
def test_speculation_changes_nothing(name: str, sampling: Sampling) -> None:
    prompts = prompts_of(name, 3, (30, 12, 9))
    for prompt in prompts:
        prompt[-3:] = prompt[:3]
    expected = alone(name, prompts, sampling)
    lookup = engine_of(name, speculation="lookup")
    assert said(lookup, prompts, sampling) == expected
    assert lookup.speculator is not None
    assert lookup.speculator.tally.proposed > 0 or sampling.temperature
    if not sampling.temperature:
        assert said(engine_of(name, draft=True, tokens=16), prompts, sampling) == expected


@pytest.mark.parametrize("name", MARKED)
def test_beams_are_those_of_the_loop(name: str) -> None:
    prompts = prompts_of(name, 2, (14, 6))
    sampling = Sampling(max_tokens=8, beams=3, n=2, ignore_eos=True)
    engine = engine_of(name, tokens=16)
    found = engine.generate(prompts, sampling)
    theirs = generate_ids(engine.model, prompts, sampling, start=engine.start)
    assert [one.ids for one in found] == [one.ids for one in theirs]
    assert [one.score for one in found] == pytest.approx([one.score for one in theirs], abs=CLOSE)
    emptied(engine)


@pytest.mark.parametrize("name", [one for one in MARKED if one.id not in PAIRS])
def test_prompts_are_as_likely_as_the_loop_says(name: str) -> None:
    prompts = prompts_of(name, 3, (40, 3, 12))
    sampling = Sampling(max_tokens=0, prompt_logprobs=1)
    engine = engine_of(name, tokens=7)
    found = engine.generate(prompts, sampling)
    theirs = generate_ids(engine.model, prompts, sampling)
    for ours, other in zip(found, theirs, strict=True):
        assert ours.prompt_logprobs is not None
        assert other.prompt_logprobs is not None
        assert ours.prompt_logprobs[0] is None
        assert len(ours.prompt_logprobs) == len(other.prompt_logprobs)
        for a, b in zip(ours.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
            assert a is not None
            assert b is not None
            assert a.id == b.id
            assert abs(a.logprob - b.logprob) < CLOSE
    whole = engine_of(name).generate(prompts, sampling)
    assert [one.prompt_logprobs for one in whole] == [one.prompt_logprobs for one in found]
    emptied(engine)


@pytest.mark.parametrize("form", ["int8", "bf16"])
@pytest.mark.parametrize("name", FORMED)
def test_every_form_is_exact(name: str, form: str) -> None:
    prompts = prompts_of(name, 4, (40, 3, 12, 33))
    expected = [said(engine_of(name, form=form, prefix_cache=False), [prompt], drawn())[0] for prompt in prompts]
    engine = engine_of(name, form=form, tokens=7, rows=3, speculation="lookup")
    assert said(engine, prompts, drawn()) == expected
    assert said(engine, prompts, drawn()) == expected


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "t5", "hybrid"])
def test_keys_and_values_in_int8_are_near(name: str) -> None:
    """Of log-probabilities of the same forced tokens: within 0.1, and the same bits whatever runs beside."""
    prompts = prompts_of(name, 3, (40, 12, 30))
    plain = engine_of(name).generate(prompts, Sampling(max_tokens=1, temperature=0.0, logprobs=5))
    engine = engine_of(name, kv="int8")
    rounded = engine.generate(prompts, Sampling(max_tokens=1, temperature=0.0, logprobs=5))
    for ours, other in zip(rounded, plain, strict=True):
        assert ours.logprobs is not None
        assert other.logprobs is not None
        pairs = dict(other.logprobs[0].top)
        gaps = [abs(value - pairs[token]) for token, value in ours.logprobs[0].top if token in pairs]
        assert gaps
        assert max(gaps) < 0.1
    crowd = said(engine_of(name, kv="int8", tokens=7), prompts, drawn())
    assert crowd == [said(engine_of(name, kv="int8", prefix_cache=False), [p], drawn())[0] for p in prompts]


@pytest.mark.parametrize("name", ["llama", "mamba", "t5"])
def test_adapters_beside_each_other(name: str, tmp_path: Path) -> None:
    """With and without an adapter in the same steps, prompts and outputs of uneven lengths."""
    folder = next(kind for kind in KINDS if kind.name == name).folder(tmp_path)
    prompts = prompts_of(name, 5, (40, 3, 12, 33, 9))
    names = [None, "a", None, "a", None]

    def made(**more: object) -> Engine:
        engine = engine_of(name, **more)
        engine.load_adapter("a", folder)
        return engine

    expected = [
        made(prefix_cache=False).generate([p], greedy(), adapter=a)[0] for p, a in zip(prompts, names, strict=True)
    ]
    assert Said.of(made().generate(prompts[1:2], greedy())[0]) != Said.of(expected[1])
    bare = alone(name, prompts[:1], greedy())
    engine = made(tokens=16)
    jobs = [engine.submit(p, greedy(), adapter=a) for p, a in zip(prompts, names, strict=True)]
    while not engine.idle:
        engine.step()
    assert [Said.of(job.generations[0]) for job in jobs] == [Said.of(one) for one in expected]
    if name != "mamba":
        assert Said.of(expected[0]) == bare[0]
    emptied(engine)


Fault = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[str, tuple[str, Fault]] = {}


def fault(family: str) -> Callable[[Fault], Fault]:
    """Registers a fault and the family in which it must show."""

    def keep(make: Fault) -> Fault:
        FAULTS[make.__name__] = (family, make)
        return make

    return keep


@fault("llama")
def pages_known_by_their_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pages, "digest_of", lambda before, ids: blake2b(before + bytes([len(ids)])).digest())
    patch.setattr(pages.Entry, "ids", property(lambda _: Anything(), lambda *_: None))


@fault("llama")
def positions_off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = packed._places
    patch.setattr(packed, "_places", lambda works, counts: real(works, counts) + (len(works) > 1))


@fault("llama")
def the_bits_of_a_mate(patch: pytest.MonkeyPatch) -> None:
    real = Packed.attend

    def mixed(self: Packed, *rest: Any) -> Any:
        out = real(self, *rest)
        return out + 1e-6 * out.sum() if len(self.works) > 1 else out

    patch.setattr(Packed, "attend", mixed)


@fault("llama")
def drafts_that_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    real = Scheduler.commit
    patch.setattr(
        Scheduler,
        "commit",
        lambda self, plan, accepted=None: real(self, plan, {s: n + 1 for s, n in (accepted or {}).items()}),
    )


@fault("mamba")
def states_that_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    real = Packed.settle
    patch.setattr(Packed, "settle", lambda self, without=(): real(self))  # noqa: ARG005


@fault("mamba")
def hits_without_a_state(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pages.Pool, "_usable", lambda self, entries: True)  # noqa: ARG005


@fault("luong-general-fed")
def a_source_as_long_as_its_mates(patch: pytest.MonkeyPatch) -> None:
    real = Packed.recall
    patch.setattr(Packed, "recall", lambda self, *rest: real(self, *rest)._replace(visible=None))


@fault("luong-general-fed")
def sums_that_know_their_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attentive.rows, "usable", lambda x: None)  # noqa: ARG005


class Anything:
    """Equal to all."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


def crowd(family: str) -> list[list[int]]:
    """Prompts with something to look up, of which two begin alike for more than a page."""
    prompts = prompts_of(family, 3, (75, 70, 44))
    prompts[1][:40] = prompts[0][:40]
    for prompt in prompts:
        prompt[-6:] = [*prompt[:3], *prompt[:3]]
    return prompts


class Wrong:
    """A drafter that is nearly never right: what it proposes has to be taken back."""

    cost = 0.0

    def propose(self, sequences: Any, lines: Any, counts: list[int]) -> list[Proposal]:  # noqa: ARG002
        return [Proposal([4] * count) for count in counts]

    def forget(self, sequence: Any) -> None:
        """Nothing is kept."""


def crowded(family: str) -> Engine:
    engine = engine_of(family, speculation="lookup")
    if family == "mamba":
        assert engine.speculator is not None
        engine.speculator.drafter = Wrong()
    return engine


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_crowd_with_drafts_and_hits_is_each_alone(family: str) -> None:
    """What the faults below break."""
    prompts, engine = crowd(family), crowded(family)
    expected = alone(family, prompts, greedy(16))
    assert said(engine, prompts[:1], greedy(16)) + said(engine, prompts, greedy(16)) == expected[:1] + expected


@pytest.mark.parametrize(("family", "make"), FAULTS.values(), ids=list(FAULTS))
def test_the_law_can_fail(family: str, make: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = crowd(family)
    sampling = greedy(16)
    expected = alone(family, prompts, sampling)
    make(monkeypatch)
    engine = crowded(family)
    real, steps = engine.step, iter(range(200))

    def bounded() -> Any:
        assert next(steps, None) is not None, "it does not end"
        return real()

    monkeypatch.setattr(engine, "step", bounded)
    try:
        found = said(engine, prompts[:1], sampling) + said(engine, prompts, sampling)
    except (AssertionError, IndexError):
        return
    assert found != expected[:1] + expected


@pytest.mark.slow
def test_without_native_operators_the_engine_is_close() -> None:
    code = (
        "from tests.laws.served import *\n"
        "engine = engine_of('llama'); assert not engine.exact\n"
        "p = prompts_of('llama', 3, (40, 3, 12)); a = said(engine, p, greedy()); b = reference('llama', p, greedy())\n"
        "assert [x.ids for x in a] == [x.ids for x in b]\n"
        "assert max(abs(i - j) for x, y in zip(a, b) for i, j in zip(x.logprobs, y.logprobs)) < 2e-4\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OPENBOOK_NATIVE": "0"}, check=False)
    assert done.returncode == 0
    assert engine_of("llama").exact
