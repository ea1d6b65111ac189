"""What goes wrong in an engine stays where it went wrong: mates get what they would have got, every page comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.errors import InputError, Refusal
from openbook.generate.engine import Engine
from openbook.generate.job import Job
from openbook.generate.packed import Packed
from openbook.generate.pages import Pool
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling
from openbook.generate.settings import Settings
from openbook.nn.serving import assign, logical
from tests.laws.adapters import KINDS
from tests.laws.served import Said, drawn, emptied, engine_of, greedy, model_of, prompts_of, said

NAME = "llama"
KINDS_OF_STATE = ["llama", "mistral", "hybrid", "t5"]


def fresh(name: str, prompt: list[int], sampling: Sampling) -> Said:
    return said(engine_of(name, prefix_cache=False), [prompt], sampling)[0]


def finish(engine: Engine) -> None:
    """Runs to the end; checks after each step."""
    for _ in range(2000):
        if engine.idle:
            return
        engine.step()
        engine.scheduler.check()
    raise AssertionError("it does not end")


class Fault:
    """Raises in a step's forward pass, where `when` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: Callable[[Packed], bool], error: BaseException) -> None:
        self.raised = 0

        def broken(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def run(state: Packed, *rest: object) -> Tensor:
                out = real(state, *rest)
                if when(state):
                    self.raised += 1
                    raise error
                return out

            return run

        monkeypatch.setattr(Packed, "attend", broken(Packed.attend))


@pytest.mark.parametrize("name", KINDS_OF_STATE)
@pytest.mark.parametrize("error", [RuntimeError("an operator broke"), MemoryError()], ids=["operator", "memory"])
def test_an_operator_that_fails_once_is_not_noticed(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(name, 4, (40, 3, 12, 33))
    expected = [fresh(name, prompt, drawn()) for prompt in prompts]
    calls = iter(range(10**6))
    fault = Fault(monkeypatch, lambda state: len(state.works) > 1 and next(calls) in (2, 9, 16), error)
    engine = engine_of(name, tokens=24)
    assert said(engine, prompts, drawn()) == expected
    assert fault.raised == 3
    assert engine.stats.failures == 0
    emptied(engine)


@pytest.mark.parametrize("name", KINDS_OF_STATE)
def test_who_always_fails_fails_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(name, 4, (40, 3, 12, 33))
    expected = [fresh(name, prompt, drawn()) for prompt in prompts]
    with monkeypatch.context() as patch:
        engine = engine_of(name, tokens=24)
        Fault(patch, lambda state: any(work.sequence.ask.key == 0 for work in state.works), RuntimeError("mine"))
        jobs = [engine.submit(prompt, drawn()) for prompt in prompts]
        finish(engine)
    assert jobs[0].generations[0].finish == "error"
    assert "mine" in str(jobs[0].generations[0].error)
    assert engine.stats.failures == 1
    assert [Said.of(job.generations[0]) for job in jobs[1:]] == expected[1:]
    # The same prompt again, healthy: nothing of the broken pages may be found.
    assert said(engine, prompts, drawn()) == expected
    emptied(engine)


def test_pages_of_a_failed_step_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt whose first layers were read and whose last was not has no page in the prefix cache."""
    (prompt,) = prompts_of(NAME, 1, (50,))
    expected = fresh(NAME, prompt, greedy())
    engine = engine_of(NAME)
    with monkeypatch.context() as patch:
        Fault(patch, lambda _: True, RuntimeError("broken"))
        job = engine.submit(prompt, greedy())
        finish(engine)
    assert job.generations[0].finish == "error"
    assert not engine.scheduler.pool.entries
    assert said(engine, [prompt], greedy()) == [expected]


def test_an_interrupt_leaves_the_engine_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(NAME, 3, (40, 3, 12))
    expected = [fresh(NAME, prompt, drawn()) for prompt in prompts]
    engine = engine_of(NAME, tokens=24)
    jobs = [engine.submit(prompt, drawn()) for prompt in prompts]
    calls = iter(range(10**6))
    with monkeypatch.context() as patch:
        Fault(patch, lambda _: next(calls) == 7, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            finish(engine)
    finish(engine)
    assert [Said.of(job.generations[0]) for job in jobs] == expected
    emptied(engine)


def pages(name: str, count: int) -> int:
    shape = engine_of(name).store.shape
    return count * sum(group.nbytes for group in shape.groups) + 3 * shape.slot_bytes


@pytest.mark.parametrize("sampling", [drawn(), drawn(n=5)], ids=["one", "five"])
def test_a_pool_of_few_pages(sampling: Sampling) -> None:
    prompts = prompts_of(NAME, 6, (40, 33, 44))
    expected = [found for prompt in prompts for found in said(engine_of(NAME), [prompt], sampling)]
    engine = engine_of(NAME, memory=pages(NAME, 8))
    assert said(engine, prompts, sampling) == expected
    if sampling.n > 1:
        assert engine.stats.preemptions
    emptied(engine)


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("name", ["llama", "hybrid"])
def test_beams_in_a_pool_of_few_pages(name: str, count: int) -> None:
    """Beams wait for each other; there may be no room for all of them at once."""
    (prompt,) = prompts_of(name, 1, (40,))
    sampling = Sampling(max_tokens=16, beams=4, n=2, ignore_eos=True)
    expected = [(one.ids, one.score) for one in engine_of(name).generate([prompt], sampling)]
    engine = engine_of(name, memory=pages(name, count))
    job = engine.submit(prompt, sampling)
    finish(engine)
    if all(one.finish != "error" for one in job.generations):
        assert [(one.ids, one.score) for one in job.generations] == expected
    emptied(engine)


def test_a_draft_model_that_is_always_wrong_costs_little() -> None:
    prompts = prompts_of(NAME, 3)
    expected = [fresh(NAME, prompt, greedy(40)) for prompt in prompts]
    plain = engine_of(NAME)
    said(plain, prompts, greedy(40))
    engine = engine_of(NAME, draft=True)
    assert engine.speculator is not None
    assert said(engine, prompts, greedy(40)) == expected
    tally = engine.speculator.tally
    assert tally.proposed > 0
    assert tally.proposed <= 2 * tally.tokens  # it soon stops trying
    assert engine.stats.steps <= plain.stats.steps + 1
    assert not engine.speculator._habits
    assert engine.speculator.drafter.pool.bytes == 0  # type: ignore[attr-defined]
    emptied(engine)


def test_a_draft_model_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(NAME, 3)
    expected = [fresh(NAME, prompt, greedy()) for prompt in prompts]
    engine = engine_of(NAME, draft=True)
    assert engine.speculator is not None

    def broken(*_: object) -> None:
        raise RuntimeError("no drafts today")

    monkeypatch.setattr(type(engine.speculator.drafter), "propose", broken)
    assert said(engine, prompts, greedy()) == expected
    assert engine.stats.failures > 0
    emptied(engine)


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "mamba", "hybrid", "t5"])
def test_a_poisoned_request_poisons_nobody(name: str) -> None:
    """NaN for one id; the pages that it spoils are used again by others."""
    import copy

    model = copy.deepcopy(model_of(name))
    prompts = prompts_of(name, 4, (40, 35, 12, 50))
    prompts = [[token if token != 7 else 8 for token in prompt] for prompt in prompts]
    bad = [*prompts[0][:20], 7, *prompts[0][20:30]]
    sampling = Sampling(max_tokens=12, temperature=0.0, logprobs=0, ignore_eos=True, banned=(7,))
    start = (0,) if model.spec.source is not None else ()

    def made(memory: int = 8 << 20, **more: object) -> Engine:
        return Engine(model, Settings(memory=memory, **more), start=start)

    expected = [said(made(), [prompt], sampling)[0] for prompt in prompts]
    embed = model.embed if model.source is None or model.source.embed is None else model.source.embed

    def poison(module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:  # noqa: ARG001
        return out.masked_fill((args[0] == 7).unsqueeze(-1), torch.nan)

    embed.tokens.register_forward_hook(poison)
    shape = made().store.shape
    source = shape.source.nbytes if shape.source else 0
    few = made(memory=9 * (sum(g.nbytes for g in shape.groups) + source) + 4 * shape.slot_bytes)
    for engine in (made(tokens=16), few):
        jobs = []
        for prompt in prompts:
            jobs.append(engine.submit(prompt, sampling))
            engine.submit(bad, sampling)
            engine.step()
        finish(engine)
        for prompt in prompts:  # and where the bad ones' pages have come back
            jobs.append(engine.submit(prompt, sampling))
        finish(engine)
        assert [Said.of(job.generations[0]) for job in jobs] == expected * 2
        emptied(engine)


STATES = ["waiting", "reading", "writing", "forked", "beams", "preempted", "done"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", KINDS_OF_STATE)
def test_cancel_in_every_state(name: str, state: str) -> None:
    from tests.laws.served import preempt

    engine = engine_of(name, tokens=16, speculation="lookup")
    prompts = prompts_of(name, 2, (40, 12))
    expected = fresh(name, prompts[1], drawn())
    mate = engine.submit(prompts[1], drawn())
    heard: list[Token] = []
    sampling = Sampling(max_tokens=12, beams=3, n=2, ignore_eos=True) if state == "beams" else drawn(n=3)
    job = engine.submit(prompts[0], sampling, listener=heard.append)
    for _ in range({"waiting": 0, "reading": 2}.get(state, 7)):
        engine.step()
    if state == "preempted":
        assert preempt(engine, job)
    if state == "done":
        finish(engine)
    events = engine.cancel(job)
    engine.scheduler.check()
    assert engine.cancel(job) == []
    assert job.ended
    assert heard[len(heard) - len(events) :] == events
    if state != "done":
        assert {one.finish for one in job.generations} == {"cancelled"}
        assert sum(token.finish is not None for token in heard) == len(job.lines)
    finish(engine)
    assert Said.of(mate.generations[0]) == expected
    emptied(engine)


def test_deadlines() -> None:
    engine = engine_of(NAME, tokens=16)
    now = [100.0]
    engine.clock = lambda: now[0]
    prompts = prompts_of(NAME, 3, (40, 12, 30))
    mate = engine.submit(prompts[0], drawn())
    running = engine.submit(prompts[1], drawn(n=2), timeout=5.0)
    for _ in range(6):
        engine.step()
    waiting = engine.submit(prompts[2], drawn(), timeout=0.0)
    engine.step()
    assert waiting.generations[0].finish == "deadline"
    assert not waiting.generations[0].ids
    now[0] = 106.0
    events = engine.step()
    assert sum(token.finish == "deadline" for token in events) == 2
    assert {one.finish for one in running.generations} == {"deadline"}
    assert running.generations[0].ids
    finish(engine)
    assert Said.of(mate.generations[0]) == fresh(NAME, prompts[0], drawn())
    emptied(engine)


# ------------------------------------------------------------------------------------------------ weights, adapters


def test_pushed_weights() -> None:
    import copy

    prompts = prompts_of(NAME, 3, (40, 12, 30))
    model = copy.deepcopy(model_of(NAME))
    engine = Engine(model, Settings(memory=8 << 20, tokens=24))
    old = [fresh(NAME, prompt, greedy()) for prompt in prompts]
    held = logical(model)
    names = [
        "embed.tokens.weight",
        "stack.blocks.1.branches.0.layer.q.weight",
        "stack.blocks.0.branches.1.layer.up.weight",
    ]
    names = [name for name in held if "blocks.1" in name or "embed" in name][:6]
    new = {name: held[name] + 0.2 * torch.randn(held.shape(name)) for name in names}
    running = engine.submit(prompts[0], greedy())
    for _ in range(6):
        engine.step()
    written = len(running.generations[0].ids)
    assert 0 < written < 12
    waiting = engine.submit(prompts[1], greedy())
    assert engine.push(new) == 1
    finish(engine)
    assert running.generations[0].versions == [0] * written + [1] * (12 - written)
    assert running.generations[0].ids[:written] == list(old[0].ids[:written])
    assert waiting.generations[0].versions == [1] * 12
    with_new = copy.deepcopy(model_of(NAME))
    for name, tensor in new.items():
        assign(with_new, name, tensor)
    expected = [
        said(Engine(with_new, Settings(memory=8 << 20, prefix_cache=False)), [prompt], greedy())[0]
        for prompt in prompts
    ]
    assert Said.of(waiting.generations[0]) == expected[1]
    assert said(engine, prompts, greedy()) == expected  # nothing of the old weights is found
    assert expected != old
    emptied(engine)


def test_a_push_counts_for_every_engine_of_the_model() -> None:
    import copy

    model = copy.deepcopy(model_of(NAME))
    one, other = (Engine(model, Settings(memory=8 << 20)) for _ in range(2))
    (prompt,) = prompts_of(NAME, 1, (45,))
    said(other, [prompt], greedy())
    held = logical(model)
    name = next(name for name in held if "blocks.1" in name and name.endswith("q.weight"))
    one.push({name: held[name] + torch.randn(held.shape(name))})
    assert said(other, [prompt], greedy()) == said(one, [prompt], greedy())
    assert other.stats.cached_tokens == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_optimiser_goes_on_with_a_restored_model(dtype: str, tmp_path: Path) -> None:
    from openbook.models.load import load
    from tests import families

    model = load(families.DECODERS[0].folder(tmp_path), dtype=dtype)
    kept = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, Settings(memory=8 << 20))
    said(engine, [[5, 6, 7]], greedy())
    engine.restore()
    for name, parameter in model.named_parameters():
        assert parameter is kept[name][0]
        assert torch.equal(parameter, kept[name][1])
    model.train()
    model(torch.tensor([[5, 6, 7]])).float().sum().backward()
    optimiser.step()
    assert not any(torch.equal(parameter, before) for parameter, before in kept.values() if parameter.grad is not None)


def test_a_push_is_all_or_nothing() -> None:
    import copy

    (prompt,) = prompts_of(NAME, 1)
    engine = Engine(copy.deepcopy(model_of(NAME)), Settings(memory=8 << 20))
    before = said(engine, [prompt], greedy())
    held = logical(engine.model)
    good = {name: held[name] * 3 for name in list(held)[:2]}
    name = list(held)[3]
    for bad, message in (
        ({"stack.nothing": torch.ones(2)}, "no parameter 'stack.nothing'"),
        ({name: held[name].unsqueeze(0)}, "has the shape"),
        ({name: torch.full_like(held[name], torch.nan)}, "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            engine.push(good | bad)
        assert engine.version == 0
        assert said(engine, [prompt], greedy()) == before


def test_an_adapter_in_use_stays(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    kind = next(kind for kind in KINDS if kind.name == "llama")
    engine = engine_of(NAME)
    folder = kind.folder(tmp_path)
    engine.load_adapter("a", folder)
    (prompt,) = prompts_of(NAME, 1, (40,))
    plain = said(engine, [prompt], greedy())
    job: Job = engine.submit(prompt, greedy(), adapter="a")
    engine.step()
    with pytest.raises(Refusal, match="used by 1 requests"):
        engine.unload_adapter("a")
    finish(engine)
    engine.unload_adapter("a")
    with pytest.raises(InputError, match="no adapter 'a'"):
        engine.submit(prompt, greedy(), adapter="a")
    assert Said.of(job.generations[0]) != plain[0]
    assert said(engine, [prompt], greedy()) == plain
    emptied(engine)


def test_the_law_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are given back twice, or not at all, are found."""
    monkeypatch.setattr(Pool, "_drop", lambda *_: None)
    engine = engine_of(NAME)
    job = engine.submit(prompts_of(NAME, 1)[0], greedy())
    engine.step()
    engine.cancel(job)
    with pytest.raises(AssertionError):
        emptied(engine)
