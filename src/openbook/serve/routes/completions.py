"""`/v1/completions`: one prompt or many, each with `n` continuations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from openbook.chat import Complete, Delta, Logprob, Sampling, Tokenize, Usage
from openbook.errors import Busy, InputError
from openbook.serve import asking, saying
from openbook.serve.buffering import buffered
from openbook.serve.route import Call, Reply, Route, Stream
from openbook.serve.served import Served
from openbook.serve.wire.completions import CompletionReply, CompletionRequest, TextChoice, TextLogprobs

Prompt = str | list[int]
AHEAD = 64  # chunks that are held for a reader of several prompts
TOGETHER = 128  # prompts of one request that are worked on at once: the rest of them waits here, in nobody's way
WAIT = 0.05  # seconds before a prompt that found no room tries again
CHOICES = 4096  # that one request may ask for


async def complete(call: Call, asked: CompletionRequest) -> Reply:
    """Continues prompts."""
    asking.check_stream(asked)
    served = call.server.models.find(asked.model)
    call.model = served.name
    prompts = prompts_of(asked.prompt)
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise InputError(f"`best_of` must be `n`, for choices are not ranked: got {asked.best_of} and {asked.n or 1}.")
    sampling = asking.sampling_of(asked, replace(served.defaults, max_tokens=asking.COMPLETION_TOKENS), None)
    if asked.echo and asked.logprobs is not None:
        sampling = replace(sampling, prompt_logprobs=asked.logprobs)
    if len(prompts) * sampling.n > CHOICES:
        raise InputError(
            f"`prompt` and `n` ask for {len(prompts) * sampling.n} choices: at most {CHOICES} are written."
        )
    terms = asking.terms_of(asked, call.caller.name, call.server.settings)
    endpoint = served.require(Complete)
    texts = [await _text(served, prompt) if asked.echo else "" for prompt in prompts]
    answers = await call.aside(lambda: [endpoint.complete(prompt, sampling, terms=terms) for prompt in prompts])
    if len(prompts) > 1:
        again = [partial(endpoint.complete, prompt, sampling, terms=terms) for prompt in prompts]
        open_ones: set[int] = set()
        answers = [_patient(*one, open_ones) for one in zip(range(len(prompts)), answers, again, strict=True)]
    streams = [call.server.metrics.metered(call, answer) for answer in answers]
    if asked.buffer in ("word", "sentence"):
        streams = [buffered(stream, asked.buffer) for stream in streams]
    chunks = _choices(asked, sampling, texts, streams)
    if asked.stream:
        return Stream(_chunks(call, asked, chunks))
    return await _whole(call, asked, len(prompts) * sampling.n, chunks)


def prompts_of(given: str | Sequence[str | int | Sequence[int]]) -> list[Prompt]:
    """The prompts of a request: a text, ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    kinds = {type(one) for one in given}
    if kinds == {int}:
        return [[one for one in given if isinstance(one, int)]]
    if len(kinds) != 1:
        raise InputError("`prompt` is a text, a list of texts, ids, or a list of lists of ids: these are mixed.")
    return [one if isinstance(one, str) else list(one) for one in given if not isinstance(one, int)]


async def _text(served: Served, prompt: Prompt) -> str:
    """A prompt as text, for those who want it back."""
    return prompt if isinstance(prompt, str) else await served.require(Tokenize).detokenize(prompt)


async def _choices(
    asked: CompletionRequest, sampling: Sampling, texts: list[str], streams: list[AsyncIterator[Delta]]
) -> AsyncIterator[tuple[TextChoice, Usage | None]]:
    """What came, as choices of the whole request, with the usage of a prompt at its end."""
    offsets: dict[int, saying.Offsets] = {}
    async with aclosing(merged(streams)) as deltas:  # type: ignore[type-var]  # all of ours are generators
        async for place, delta in deltas:
            index = place * sampling.n + delta.choice
            said, echo, heard = delta.text, "", delta.heard
            if delta.heard or delta.dropped:  # before anything was written: it is all choices'
                for choice in range(sampling.n):
                    index = place * sampling.n + choice
                    yield _echoed(asked, index, texts[place], heard, offsets), None
                continue
            if asked.echo and index not in offsets:
                offsets[index] = saying.Offsets(bool(asked.logprobs))
                echo = texts[place]
            logprobs = None
            if asked.logprobs is not None and delta.logprobs:
                logprobs = offsets.setdefault(index, saying.Offsets(bool(asked.logprobs))).of(delta.logprobs)
            yield TextChoice(index=index, text=echo + said, finish_reason=delta.finish, logprobs=logprobs), delta.usage


def _echoed(
    asked: CompletionRequest, index: int, text: str, heard: Sequence[Logprob | None], offsets: dict[int, saying.Offsets]
) -> TextChoice:
    """The prompt, with its log-probabilities, before a choice."""
    choice = TextChoice(index=index, text="", finish_reason=None, logprobs=None)
    if asked.echo:
        offsets[index] = saying.Offsets(bool(asked.logprobs))
        choice.text = text
        whole, rest = text.encode(), sum(len(saying.written(one)) for one in heard if one is not None)
        choice.logprobs = offsets[index].of(heard, whole[: max(0, len(whole) - rest)].decode(errors="replace"))
    if asked.prompt_logprobs is not None:
        choice.prompt_logprobs = saying.heard_of(heard)
    return choice


async def _chunks(
    call: Call, asked: CompletionRequest, choices: AsyncIterator[tuple[TextChoice, Usage | None]]
) -> AsyncIterator[CompletionReply]:
    created, total = int(time.time()), Usage()
    async with aclosing(choices) as parts:  # type: ignore[type-var]  # all of ours are generators
        async for choice, usage in parts:
            total = _sum(total, usage)
            yield CompletionReply(id=call.id, created=created, model=asked.model, choices=[choice])
    if asked.stream_options is not None and asked.stream_options.include_usage:
        said = saying.usage_of(total, call.server.settings.cached_price)
        yield CompletionReply(id=call.id, created=created, model=asked.model, choices=[], usage=said)


async def _whole(
    call: Call, asked: CompletionRequest, count: int, choices: AsyncIterator[tuple[TextChoice, Usage | None]]
) -> CompletionReply:
    whole = [TextChoice(index=index, text="", finish_reason=None, logprobs=None) for index in range(count)]
    total = Usage()
    async for part, usage in choices:
        one, total = whole[part.index], _sum(total, usage)
        one.text += part.text
        one.finish_reason = part.finish_reason or one.finish_reason
        one.prompt_logprobs = part.prompt_logprobs or one.prompt_logprobs
        one.logprobs = _longer(one.logprobs, part.logprobs)
    said = saying.usage_of(total, call.server.settings.cached_price)
    return CompletionReply(id=call.id, created=int(time.time()), model=asked.model, choices=whole, usage=said)


def _longer(one: TextLogprobs | None, other: TextLogprobs | None) -> TextLogprobs | None:
    if one is None or other is None:
        return one or other
    one.tokens += other.tokens
    one.token_logprobs += other.token_logprobs
    one.text_offset += other.text_offset
    if one.top_logprobs is not None:
        one.top_logprobs += other.top_logprobs or []
    return one


def _sum(one: Usage, other: Usage | None) -> Usage:
    if other is None:
        return one
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )


async def _patient(
    place: int, stream: AsyncIterator[Delta], again: Callable[[], AsyncIterator[Delta]], open_ones: set[int]
) -> AsyncIterator[Delta]:
    """A prompt for which there is no room waits while others of its request are at work: they will make some."""
    while True:
        open_ones.add(place)
        begun = False
        try:
            async with aclosing(stream) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    begun = True
                    yield delta
            return
        except Busy:
            if begun or open_ones == {place}:
                raise
        finally:
            open_ones.discard(place)
        await asyncio.sleep(WAIT)
        stream = again()


async def merged(streams: Sequence[AsyncIterator[Delta]]) -> AsyncIterator[tuple[int, Delta]]:
    """The deltas of streams as they come, each with the place of its stream. The first error ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:  # type: ignore[type-var]  # all of ours are generators
            async for delta in only:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue(AHEAD)
    room = asyncio.Semaphore(TOGETHER)

    async def read(place: int, stream: AsyncIterator[Delta]) -> None:
        try:
            async with room, aclosing(stream) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    await queue.put((place, delta))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    readers = [asyncio.ensure_future(read(place, stream)) for place, stream in enumerate(streams)]
    try:
        left = len(readers)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


ROUTES = (
    Route(
        method="POST",
        path="/v1/completions",
        handler=complete,
        request=CompletionRequest,
        reply=CompletionReply,
        chunk=CompletionReply,
        summary="Continue texts",
        works=True,
        subject="prompt",
    ),
)
