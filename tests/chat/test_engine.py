"""`ob.Engine`: texts in, texts out, many at once; streams that cancel, terms, adapters' names, int8, embeddings."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import openbook as ob
from openbook.chat import Chat, Complete, Embed, Message, Sampling, Score, Tool, capabilities, collect, wait
from openbook.chat.engine import Engine, Output, Terms
from openbook.chat.local import Local
from openbook.errors import ConfigError, InputError, OpenbookError, Refusal
from openbook.generate import grammars
from openbook.generate.settings import Settings
from openbook.models.load import save
from openbook.models.make import make, spec_of
from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES

GREEDY = Sampling(max_tokens=12, temperature=0.0)
LONG = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
PROMPTS = ["Once upon", "The fox", "A", "Nobody in the house knew"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine")
    tokenizer = Tokenizer.train(SENTENCES * 3, 400)
    sizes = {"vocab": tokenizer.vocab, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "context": 512}
    save(make(spec_of("llama", sizes), 3), path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="32MiB") as made:
        yield made


def test_generate_says_what_one_alone_says(engine: Engine, folder: Path) -> None:
    heard: list[Output] = []
    together = engine.generate(PROMPTS, GREEDY, on_output=heard.append)
    assert [output.prompt for output in together] == [0, 1, 2, 3]
    assert sorted(output.prompt for output in heard) == [0, 1, 2, 3]
    for output, prompt in zip(together, PROMPTS, strict=True):
        assert engine.generate([prompt], GREEDY)[0].ids == output.ids
    slow = ob.generate(ob.load(folder), ob.Tokenizer.load(folder), PROMPTS, GREEDY)
    assert [output.text for output in together] == slow


def test_ids_choices_and_logprobs(engine: Engine) -> None:
    asked = Sampling(max_tokens=5, n=3, seed=1, logprobs=2, prompt_logprobs=0)
    ids = engine.prompt_of("The fox")
    outputs = engine.generate([ids], asked)
    assert [output.choice for output in outputs] == [0, 1, 2]
    for output in outputs:
        assert output.logprobs is not None
        assert len(output.logprobs) == len(output.ids)
    assert outputs[0].prompt_logprobs is not None
    assert len(outputs[0].prompt_logprobs) == len(ids)


def test_streams_say_the_same_and_what_was_cached(engine: Engine) -> None:
    prompt = "The fox crossed the river. " * 12
    (output,) = engine.generate([prompt], GREEDY)
    answer = wait(collect(engine.complete(prompt, GREEDY)))
    assert answer.text == output.text
    assert answer.usage is not None
    assert 0 < answer.usage.cached_tokens < answer.usage.prompt_tokens
    said = wait(collect(engine.chat([Message.user("The fox")], GREEDY)))
    assert said.text == wait(collect(engine.stream([Message.user("The fox")], GREEDY))).text
    assert wait(collect(engine.complete("A", Sampling(max_tokens=0)))).text == ""


def test_a_closed_stream_cancels(engine: Engine) -> None:
    async def first() -> None:
        async with aclosing(engine.complete("The fox", LONG)) as deltas:  # type: ignore[type-var]
            async for _ in deltas:
                break

    asyncio.run(first())
    until = time.monotonic() + 5
    while engine.core.jobs and time.monotonic() < until:
        time.sleep(0.01)
    assert not engine.core.jobs
    engine.core.scheduler.check()


def test_an_interrupt_leaves_it_usable(engine: Engine) -> None:
    def stop(_: Output) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(["The fox", "A"], [GREEDY, LONG], on_output=stop)
    assert len(engine.generate(["The fox"], GREEDY)) == 1


def test_threads_and_loops_at_once(engine: Engine) -> None:
    expected = [output.text for output in engine.generate(PROMPTS, GREEDY)]
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        got[number] = asyncio.run(collect(engine.complete(PROMPTS[number], GREEDY))).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [got[number] for number in range(4)] == expected


def test_deadlines(engine: Engine) -> None:
    terms = Terms(timeout=0.0, tenant="one", priority=1)
    assert engine.generate(["The fox"], LONG, terms=terms)[0].finish == "deadline"
    with pytest.raises(OpenbookError, match="timeout"):
        wait(collect(engine.stream("The fox", LONG, terms=terms)))


def test_a_grammar_is_kept_to_in_streams_too(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    asked = Sampling(max_tokens=8, temperature=1.0, seed=2, grammar=ob.Choice(("yes", "no")))
    assert engine.generate(["The fox"], asked)[0].text in ("yes", "no")
    assert wait(collect(engine.complete("The fox", asked))).text in ("yes", "no")
    schema = ob.Schema.of({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
    asked = Sampling(max_tokens=200, seed=2, grammar=schema)
    assert isinstance(json.loads(engine.generate(["The fox"], asked)[0].text)["a"], bool)


def test_score_and_embed(engine: Engine, folder: Path) -> None:
    assert capabilities(engine) == ("Chat", "Complete", "Embed", "Score", "Tokenize")
    assert isinstance(engine, (Chat, Complete, Embed, Score))
    pairs = [("The fox", " crossed"), ("A", " B C")]
    reference = wait(Local(ob.load(folder), engine.tokenizer).score(pairs))
    for ours, theirs in zip(wait(engine.score(pairs)), reference, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    one, two = wait(engine.embed(["The fox", "A much longer text than the other"]))
    assert sum(x * x for x in one) == pytest.approx(1.0, abs=1e-5)
    assert len(one) == len(two) == 32


def test_passes_of_many_texts_let_others_in_and_end_with_their_caller(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["word " * count for count in (1, 4, 16, 64)]  # too different to share a pass
    call, passes = engine.live.call, 0

    def counted(work: Any) -> Any:
        nonlocal passes
        passes += 1
        return call(work)

    monkeypatch.setattr(engine.live, "call", counted)
    together = wait(engine.embed(texts))
    assert passes == 4
    for text, vector in zip(texts, together, strict=True):
        assert wait(engine.embed([text]))[0] == pytest.approx(vector, abs=1e-5)

    async def leave() -> None:
        task = asyncio.create_task(engine.embed(texts))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    passes = 0
    asyncio.run(leave())
    assert passes == 1
    with pytest.raises(InputError, match="Text 3 has"):  # before any is read
        wait(engine.embed([*texts[:3], "word " * 3000]))
    assert passes == 1


def test_errors_are_readable(engine: Engine) -> None:
    with pytest.raises(InputError, match="give \\[prompt\\]"):
        engine.generate("The fox")
    with pytest.raises(InputError, match="1 prompts and 2 samplings"):
        engine.generate(["A"], [GREEDY, GREEDY])
    with pytest.raises(InputError, match="1 prompts and 2 adapters"):
        engine.generate(["A"], GREEDY, adapter=["a", "b"])
    with pytest.raises(InputError, match="There is no adapter 'poems'"):
        engine.generate(["A"], GREEDY, adapter="poems")
    with pytest.raises(InputError, match="context"):
        engine.complete("word " * 3000, GREEDY)
    with pytest.raises(Refusal, match="does not know tools"):
        engine.chat([Message.user("A")], tools=[Tool(name="t", description="", parameters={})])
    with pytest.raises(InputError, match="sampling"):
        engine.generate(["A"], 3)  # type: ignore[arg-type]


def test_int8_from_the_folder(folder: Path) -> None:
    model = ob.load(folder, quantize="int8")
    with ob.Engine(model, ob.Tokenizer.load(folder), memory="8MiB") as engine:
        together = engine.generate(PROMPTS, GREEDY)
        assert [engine.generate([prompt], GREEDY)[0].ids for prompt in PROMPTS] == [o.ids for o in together]
    with pytest.raises(ConfigError, match="int8"):
        ob.load(folder, quantize="int9")


def test_a_forgotten_engine_ends_its_thread(folder: Path) -> None:
    engine = ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="8MiB")
    engine.generate(["A"], GREEDY)
    live = engine.live
    del engine
    gc.collect()
    assert live._thread is not None
    live._thread.join(5)
    assert not live._thread.is_alive()
    with pytest.raises(OpenbookError, match="closed"):
        live.call(lambda: None)


def test_two_engines_of_one_model_at_once(folder: Path) -> None:
    model, tokenizer = ob.load(folder), ob.Tokenizer.load(folder)
    with Engine(model, tokenizer, memory="8MiB") as one, Engine(model, tokenizer, memory="8MiB") as other:
        wanted = [output.ids for output in one.generate(PROMPTS, LONG)]
        heard: list[bool] = []

        def run(engine: Engine) -> None:
            for _ in range(4):
                heard.append([output.ids for output in engine.generate(PROMPTS, LONG)] == wanted)

        threads = [threading.Thread(target=run, args=(engine,)) for engine in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard == [True] * 8


def test_a_stream_that_is_given_up_while_it_begins_is_cancelled(folder: Path) -> None:
    with Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="8MiB") as engine:
        submit, underway = engine.core.submit, threading.Event()

        def slow(*args: object, **named: object) -> object:
            underway.set()
            time.sleep(0.1)
            return submit(*args, **named)  # type: ignore[arg-type]

        engine.core.submit = slow  # type: ignore[assignment, method-assign]

        async def give_up() -> None:
            task = asyncio.create_task(collect(engine.complete("Once upon", LONG)))
            await asyncio.to_thread(underway.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(time.sleep, 0.15)
            while not engine.core.idle:
                await asyncio.sleep(0.01)

        asyncio.run(give_up())
        assert engine.core.stats.output_tokens < 20


def test_an_engine_that_breaks_gives_no_answers(folder: Path) -> None:
    engine = Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="8MiB")
    step, steps = engine.core.step, iter(range(100))

    def breaks() -> object:
        if next(steps) >= 3:
            raise RuntimeError("the roof fell in")
        return step()

    engine.core.step = breaks  # type: ignore[assignment, method-assign]
    with pytest.raises(OpenbookError, match="the roof fell in"):  # while it runs, or while more is handed in
        engine.generate(PROMPTS, LONG)
    with pytest.raises(OpenbookError, match="the roof fell in"):
        engine.generate(PROMPTS, LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_told_rather_than_left_waiting(engine: Engine) -> None:
    engine.generate(["A"], GREEDY)
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            engine.generate(["A"], GREEDY)
        except OpenbookError as error:
            os._exit(7 if "forked" in str(error) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert engine.generate(["A"], GREEDY)[0].finish


def test_an_unknown_adapter_is_an_error_even_for_no_tokens(engine: Engine) -> None:
    with pytest.raises(InputError, match="no adapter"):
        engine.generate(["A"], Sampling(max_tokens=0), adapter="nobody")


@pytest.mark.parametrize("stop", [(), ("e", "n")])
def test_beams_are_those_of_a_search_alone(engine: Engine, folder: Path, stop: tuple[str, ...]) -> None:
    asked = Sampling(max_tokens=12, temperature=0.0, beams=3, n=3, stop=stop)
    found = engine.generate(PROMPTS, asked)
    assert [output.choice for output in found] == [0, 1, 2] * len(PROMPTS)
    wanted = ob.generate(ob.load(folder), ob.Tokenizer.load(folder), PROMPTS, asked)
    assert [output.text for output in found] == wanted
    for output in found:
        assert output.ids
        assert output.score is not None


def test_beams_that_nothing_is_left_for_are_said(engine: Engine) -> None:
    asked = Sampling(max_tokens=20, temperature=0.0, beams=3, n=3, grammar=grammars.Choice(["no"]))
    outputs = engine.generate(["A"], asked)
    assert [output.choice for output in outputs] == [0, 1, 2]
    assert outputs[0].text == "no"
    assert {output.finish for output in outputs if not output.ids} == {"error"}
    assert {output.score is None for output in outputs if not output.ids} == {True}


@pytest.mark.parametrize(
    "given",
    [{"rows": 0}, {"rows": 2.5}, {"tokens": 0}, {"page": 32.0}, {"page": -32}, {"drafts": -1}, {"waiting": 0},
     {"context": 0}, {"prefix_ttl": -1.0}, {"prefix_ttl": float("nan")}, {"prefix_minimum": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_said(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(InputError, match=f"`{name}` must be"):
        Settings(**given)


def test_what_took_no_gradients_takes_none_after_restore(folder: Path) -> None:
    model = ob.load(folder)
    model.embed.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with Engine(model, ob.Tokenizer.load(folder), memory="8MiB") as engine:
        engine.generate(["A"], GREEDY)
    engine.core.restore()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert set(before.values()) == {True, False}


def test_the_log_probabilities_of_a_prompt_are_asked_for_as_anything_else_is(folder: Path) -> None:
    """It stands in the queue with its own terms, no thread of the process waits for it, and leaving it ends it."""
    settings = Settings(rows=1)
    asked = Sampling(max_tokens=0, prompt_logprobs=0)
    with ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="32MiB", settings=settings) as engine:

        async def run() -> None:
            async with aclosing(engine.complete("A", LONG)) as long:  # type: ignore[type-var]
                await anext(long)
                with pytest.raises(OpenbookError, match="`timeout`"):
                    await collect(engine.complete("B", asked, terms=Terms(timeout=0.01)))
                waiting = [asyncio.ensure_future(collect(engine.complete("C", asked))) for _ in range(40)]
                while len(engine.core.jobs) < 41:
                    await asyncio.sleep(0.001)
                assert await asyncio.wait_for(asyncio.to_thread(lambda: True), 5)
                for one in waiting:
                    one.cancel()
                await asyncio.wait(waiting)
                while len(engine.core.jobs) > 1:
                    await asyncio.sleep(0.001)
                await long.aclose()
            said = await collect(engine.complete("D e f", asked))
            assert len(said.heard) == len(engine.prompt_of("D e f"))

        asyncio.run(asyncio.wait_for(run(), 60))


def test_a_context_is_fitted_to_the_memory_of_encoder_decoders_too(folder: Path) -> None:
    """A source without a limit takes no memory before there is one."""
    tokenizer = Tokenizer.load(folder)
    sizes = {"vocab": tokenizer.vocab, "dim": 32, "layers": 2, "heads": 4, "hidden": 64}
    model = make(spec_of("t5", sizes, {"decoder_start_token_id": 0}), 3)
    with ob.Engine(model, tokenizer, memory="8MiB") as engine:
        fits = engine.fit_context()
        assert fits is not None
        assert fits > 1000
        engine.warm()
        assert wait(collect(engine.complete("The fox", GREEDY))).usage is not None


def test_memory_for_nothing_at_all_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.core.scheduler.pool, "memory", 8)
    with pytest.raises(ConfigError, match="`memory` holds 8 bytes"):
        engine.fit_context()
