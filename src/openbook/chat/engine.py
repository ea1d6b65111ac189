"""`ob.Engine`: many requests over one model at once, as text. What each gets is what it would get alone.

    engine = ob.Engine(model, tokenizer, memory="2GiB")
    outputs = engine.generate(["Once upon a time"], ob.Sampling(max_tokens=64))        # waits; outputs[0].text
    async for delta in engine.complete("Once upon a time"): ...                        # streams; closing it cancels
    async for delta in engine.chat([Message.user("Hello")]): ...                       # the waist: it is a Chat
    engine.load_adapter("poems", "DIR");  engine.generate([...], adapter="poems")      # a LoRA beside the base
    engine.push({"stack.blocks.0.…": tensor})                                          # a trainer's next weights

The engine below (`generate/engine.py`) knows ids and runs in a thread of its own (`generate/live.py`).
"""

from __future__ import annotations

import asyncio
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from openbook.chat.adapted import Adapted
from openbook.chat.choice import bytes_of
from openbook.chat.local import Local, for_model, overdue, start_of
from openbook.chat.manners import Asked
from openbook.chat.messages import Delta, Message, Terms
from openbook.chat.protocols import DEFAULT, PLAIN
from openbook.chat.reading import Reads
from openbook.errors import ConfigError, InputError, OpenbookError, Stopped
from openbook.generate.engine import Engine as Core
from openbook.generate.job import Job
from openbook.generate.live import Live
from openbook.generate.requests import Generation, Logprob, Token
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full
from openbook.generate.settings import Settings
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Output:
    """One finished output: its text without the prompt, and how it came to be."""

    prompt: int  # which prompt, by its place in the call
    choice: int
    text: str
    ids: tuple[int, ...]
    finish: str
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache
    logprobs: tuple[Logprob, ...] | None = None
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    versions: tuple[int, ...] | None = None  # of the weights behind each token, once weights were pushed
    score: float | None = None
    error: str | None = None


LONGEST = 1 << 20  # tokens of a context where a model sets no limit


class _Batch:
    """Requests of one call: as many as the engine's queue takes, the rest when there is room."""

    def __init__(self, live: Live, terms: Terms) -> None:
        self.live = live
        self.terms = terms
        self.jobs: dict[int, Job] = {}
        self.open = 0  # choices that are not done
        self._news: SimpleQueue[tuple[int, int]] = SimpleQueue()  # prompts and choices that are done

    def submit(self, number: int, prompt: list[int], sampling: Sampling, adapter: str | None) -> bool:
        """Hands in a prompt; False where it has to wait until something else is done."""

        def heard(token: Token) -> None:
            if token.finish is not None:
                self._news.put((number, token.choice))

        def submit() -> tuple[Job, bool]:
            terms = self.terms
            job = self.live.engine.submit(
                prompt, sampling, adapter=adapter, listener=heard,
                tenant=terms.tenant, priority=terms.priority, timeout=terms.timeout,
            )  # fmt: skip
            return job, job.ended  # as it is now: a moment later it may be done, and the listener has said so

        try:
            job, ended = self.live.call(submit).result()
        except Full:
            if not self.open:
                raise
            return False
        self.jobs[number] = job
        self.open += len(job.lines)
        if ended:
            for line in job.lines:
                self._news.put((number, line.result.choice))
        return True

    def finished(self) -> Iterator[tuple[int, Job, Generation]]:
        """Choices that are done, at least one of them unless none is open."""
        while self.open:
            number, choice = self._news.get()
            self.open -= 1
            job = self.jobs[number]
            yield number, job, job.result(choice)
            if self._news.empty():
                return

    def cancel(self) -> None:
        """Ends what is not done."""
        for job in self.jobs.values():
            if not job.ended:
                with suppress(OpenbookError):  # it is closed: everything ends anyway
                    self.live.call(partial(self.live.engine.cancel, job))


class Engine(Reads, Local):
    """Chat, Complete, Score and Tokenize over an engine, and whole batches.

    memory      bytes for keys, values and states, such as "2GiB"; None: a share of what is free
    settings    everything else that an engine shares by: see `Settings`
    adapters    LoRA folders by the names that requests use
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        memory: int | str | None = None,
        settings: Settings | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        draft: LanguageModel | None = None,
    ) -> None:
        settings = settings or Settings()
        super().__init__(model, tokenizer, context=settings.context)
        self._bytes = bytes_of(tokenizer)
        self.core = Core(
            model,
            settings,
            memory=memory,
            eos=tokenizer.stops,
            start=start_of(model, tokenizer),
            token_bytes=bytes_of(tokenizer),
            draft=draft,
        )
        self.live = Live(self.core)
        weakref.finalize(self, self.live.close)  # forgotten, or the end of the program: the thread ends
        for name, folder in (adapters or {}).items():
            self.load_adapter(name, folder)

    # -- whole batches ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        terms: Terms = PLAIN,
        on_output: Callable[[Output], object] | None = None,
    ) -> list[Output]:
        """Continues every prompt, texts or lists of ids; `n` outputs for each, in the order of prompts and choices.

        `on_output` hears of each as it is finished, whatever its order. Errors as in `ob.generate`; a request that
        fails on its own has an output with finish "error".
        """
        if isinstance(prompts, str):
            raise InputError("`prompts` is a list of texts: give [prompt] for a single one.")
        sampling = Sampling() if sampling is None else sampling
        if not isinstance(sampling, (Sampling, Sequence)):
            raise InputError(f"`sampling` is a Sampling, or one for each prompt: got {type(sampling).__name__}.")
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(prompts):
            raise InputError(
                f"There are {len(prompts)} prompts and {len(samplings)} samplings: give one, or one for each."
            )
        adapters = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(adapters) != len(prompts):
            raise InputError(
                f"There are {len(prompts)} prompts and {len(adapters)} adapters: give one, or one for each."
            )
        ids = [self._ids_of(prompt) for prompt in prompts]
        self.core.check(ids, samplings)  # before any work, and by the place in this call
        batch = _Batch(self.live, terms)
        waiting = deque(enumerate(zip(ids, samplings, adapters, strict=True)))
        done: dict[tuple[int, int], Output] = {}
        try:
            while waiting or batch.open:
                while waiting and batch.submit(waiting[0][0], *waiting[0][1]):
                    waiting.popleft()
                for number, job, result in batch.finished():
                    if result.finish == "cancelled" or (result.finish == "error" and self.broken):  # it is no answer
                        raise Stopped(f"The requests could not be finished. {self.live.ended}")
                    output = self._output(number, job, result)
                    done[number, result.choice] = output
                    if on_output is not None:
                        on_output(output)
        except BaseException:
            batch.cancel()
            raise
        return [done[key] for key in sorted(done)]

    def _output(self, number: int, job: Job, result: Generation) -> Output:
        said = b"".join(map(self._bytes, result.ids))
        text = said[: len(said) - result.excess].decode("utf-8", errors="replace")
        heard = job.request.source if job.request.source is not None else job.request.prompt
        return Output(
            prompt=number,
            choice=result.choice,
            text=text.lstrip() if job.request.source is not None else text,
            ids=tuple(result.ids),
            finish=result.finish,
            prompt_tokens=len(heard),
            cached_tokens=job.lines[0].result.cached,
            logprobs=None if result.logprobs is None else tuple(result.logprobs),
            prompt_logprobs=None if result.prompt_logprobs is None else tuple(result.prompt_logprobs),
            versions=None if result.versions is None else tuple(result.versions),
            score=result.score,
            error=result.error,
        )

    def prompt_of(self, asked: str | Sequence[Mapping[str, Any] | Message]) -> list[int]:
        """The ids that a text, or a conversation, begins with."""
        if isinstance(asked, str):
            return self._prompt(asked)
        return self._ids([Message.of(message) for message in asked])

    # -- streams ------------------------------------------------------------------------------------------------------

    def stream(
        self,
        asked: str | Sequence[Mapping[str, Any] | Message],
        sampling: Sampling = DEFAULT,
        *,
        adapter: str | None = None,
        terms: Terms = PLAIN,
    ) -> AsyncIterator[Delta]:
        """`complete` of a text, or `chat` of a conversation, with an adapter and terms. Closing it cancels."""
        ids = self.prompt_of(asked)
        self.check_adapter(adapter)
        plain = isinstance(asked, str) or self.continues
        way = Asked(ids=ids, sampling=sampling) if plain else self._manners.asked(ids, (), sampling)
        return self._deltas(self._tokens(ids, for_model(way.sampling), terms, adapter), way, terms)

    def _tokens(
        self, ids: list[int], sampling: Sampling, terms: Terms, adapter: str | None = None
    ) -> AsyncGenerator[Token]:
        self.core.check([ids], [sampling])
        return self._streamed(ids, sampling, terms, adapter)

    async def _streamed(
        self, ids: list[int], sampling: Sampling, terms: Terms, adapter: str | None
    ) -> AsyncGenerator[Token]:
        stream = self.live.stream(
            ids, sampling, adapter=adapter, tenant=terms.tenant, priority=terms.priority, timeout=terms.timeout
        )
        async with aclosing(stream):
            async for job, token in stream:
                self._check_end(job, token, terms)
                yield token

    def _check_end(self, job: Job, token: Token, terms: Terms) -> None:
        """Raises what a request has ended with, if that is no end of an answer."""
        if token.finish == "error":
            result = job.lines[token.choice].result
            kind = InputError if result.refused else Stopped if self.broken else OpenbookError
            raise kind(result.error or "The request failed.")
        if token.finish == "deadline":
            raise overdue(terms)
        if token.finish == "cancelled":
            raise Stopped(f"The request was cancelled. {self.live.ended}")

    async def _listened(
        self, ids: list[int], asked: Sampling, terms: Terms, adapter: str | None = None
    ) -> Sequence[Logprob | None]:
        """As any request: it has its place among the others, and no thread waits for it."""
        found: Sequence[Logprob | None] = ()
        stream = self.live.stream(
            ids, asked, adapter=adapter, tenant=terms.tenant, priority=terms.priority, timeout=terms.timeout
        )
        async with aclosing(stream):
            async for job, token in stream:
                self._check_end(job, token, terms)
                found = job.lines[token.choice].result.prompt_logprobs or ()
        return found

    async def _heard(self, texts: list[list[int]], asked: Sampling) -> list[Sequence[Logprob | None]]:
        outputs = await asyncio.to_thread(self.generate, texts, asked)
        return [output.prompt_logprobs or () for output in outputs]

    # -- weights and adapters -----------------------------------------------------------------------------------------

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Adds a PEFT LoRA folder under a name that requests can ask for; what runs goes on undisturbed."""
        self.live.call(partial(self.core.load_adapter, name, folder)).result()

    def check_adapter(self, name: object) -> None:
        """`InputError` for a name that no adapter here has."""
        there = [] if self.core.bank is None else list(self.core.bank.names)
        if name is not None and name not in there:
            known = f" There are: {', '.join(there)}." if there else " None is loaded."
            raise InputError(f"There is no adapter {name!r}.{known}")

    def unload_adapter(self, name: str) -> None:
        """Takes it away. A `Refusal` while requests use it."""
        self.live.call(partial(self.core.unload_adapter, name)).result()

    def adapted(self, name: str) -> Adapted:
        """An adapter as an endpoint."""
        return Adapted(self, name)

    def push(self, weights: Mapping[str, Tensor]) -> int:
        """Puts new weights in place by their logical names, between two steps; the number of this version."""
        return self.live.call(partial(self.core.push, weights)).result()

    def warm(self) -> None:
        """Runs the shortest request there is, so that no caller waits for what happens once: native code, caches."""
        if self.model.spec.language is not None and self.model.spec.causal:
            self.generate([[self.tokenizer.stops[0] if self.tokenizer.stops else 0]], Sampling(max_tokens=2))

    def fit_context(self) -> int | None:
        """Limits the context to what the memory holds of one request, so that a request that says no length fits.

        Returns the limit, or None where the model's own context fits. Of an encoder-decoder it is that of an answer
        beside a source of the same length.
        """
        scheduler = self.core.scheduler
        most = self.context or LONGEST
        memory, two_sided = scheduler.pool.memory, self.model.spec.source is not None

        def need(tokens: int) -> int:
            return scheduler.pool.cost(tokens, source=tokens if two_sided else 0, chunk=scheduler.shape.page)

        fits = bisect_right(range(most + 1), memory, key=need) - 1
        if fits < 1:
            raise ConfigError(
                f"`memory` holds {memory} bytes, and the shortest request of this model needs {need(1)}. Give it more."
            )
        if fits >= most:
            return None
        self.context = fits
        self.core.settings = replace(self.core.settings, context=self.context)
        return self.context

    @property
    def broken(self) -> str | None:
        """Why it does not work any more; None: it does."""
        return None if self.live.works else self.live.ended

    def gauges(self) -> dict[str, float]:
        """What a server shows of it: who runs and waits, what its memory holds, what it has done."""
        scheduler, stats = self.core.scheduler, self.core.stats
        pool = scheduler.pool
        return {
            "running": len(scheduler.running),
            "waiting": scheduler.waiting,
            "waiting_tokens": scheduler.waiting_tokens,
            "memory_bytes": pool.memory,
            "memory_used_bytes": pool.bytes - pool.loose,
            "memory_cached_bytes": pool.loose,
            "prefix_hit_tokens": pool.hits,
            "prompt_tokens": stats.prompt_tokens,
            "output_tokens": stats.output_tokens,
            "preemptions": stats.preemptions,
            "steps": stats.steps,
            "failures": stats.failures,
            "seconds_in_model": stats.model,
        }

    def waits(self) -> tuple[list[tuple[float, int]], float]:
        """How long requests waited for their first step: how many at most so many seconds, and all seconds together."""
        return self.core.waits.cumulative(), self.core.waits.seconds

    def close(self) -> None:
        """Ends what runs; the model stays in its serving form until `core.restore`."""
        self.live.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()
