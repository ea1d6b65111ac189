"""An endpoint at the other end of a wire behind the waist: whatever speaks the OpenAI API (Openbook's server, vLLM,
llama.cpp's server, a vendor).

    remote = Remote("http://127.0.0.1:8000")
    answer = wait(collect(remote.chat([Message.user("Who crossed the river?")])))

What a request asks is sent, never left out (`wire/request.py`); what the endpoint refuses is an error in its own words
(`wire/refused.py`); closing a stream hangs up, which stops the work there.

trim     the endpoint alone knows its context: where it says that a conversation is too long, the oldest turns are left
         out (1, 2, 4 … of them) and it is asked again
score    by `echo` with log-probabilities; an endpoint that echoes nothing cannot score
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from openbook.chat.messages import Delta, Message, Scored, Terms, Tool, ToolUse, turns_of
from openbook.chat.protocols import DEFAULT, FREELY, NOTHING, PLAIN
from openbook.chat.wire.connection import Connection
from openbook.chat.wire.refused import Unanswered
from openbook.chat.wire.reply import EndpointError, Reply, Told, broken, count_of, text_of, told_of
from openbook.chat.wire.request import Fields, chat_fields, complete_fields
from openbook.errors import InputError, Refusal, TooLong
from openbook.generate.sampling import Sampling

TOGETHER = 16  # requests of one call that are under way at once
TEXTS = 128  # of one request for vectors

A = TypeVar("A")
B = TypeVar("B")


class Remote:
    """Chat, Complete, Embed, Score and Tokenize over the endpoint at `url` (with /v1 where it has no path).

    model        its name there; None: the only one that is served
    key          sent as a bearer token; `key_from` says where it comes from, for the error that it is refused
    timeout      seconds of silence after which the endpoint counts as lost; the time of a whole request is its `Terms`
    retries      before the first byte of a reply (see `wire/connection.py`)
    connections  at most; beyond, requests wait for one

    Usable from several event loops; each has connections of its own, closed by `aclose` or with the loop.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 600.0,
        *,
        key_from: str = "the `key` that was given",
        retries: int = 2,
        connections: int = 1000,
    ) -> None:
        self._wire = Connection(
            url, key=key, key_from=key_from, timeout=timeout, retries=retries, connections=connections
        )
        self.url = self._wire.base
        self.model = model
        self._least = 0  # tokens that the endpoint writes where nothing but the prompt is asked for

    def __repr__(self) -> str:
        return f"Remote({self.url!r}, model={self.model!r})"

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: Sampling = DEFAULT,
        *,
        tools: Sequence[Tool] = (),
        use: ToolUse = FREELY,
        trim: bool = False,
        terms: Terms = PLAIN,
        variables: Mapping[str, Any] = NOTHING,
    ) -> AsyncIterator[Delta]:
        """The answer, as it comes; see `Chat`."""
        heard = [Message.of(message) for message in messages]
        if not heard:
            raise InputError("The conversation is empty. Give at least one message.")
        fields = chat_fields(heard, sampling, tools, use, terms, variables)
        return self._trimmed(heard, fields, sampling, terms) if trim else self._said(fields, sampling, terms)

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling = DEFAULT, *, terms: Terms = PLAIN
    ) -> AsyncIterator[Delta]:
        """What follows `prompt`, as it comes; see `Complete`. The tokens of the prompt are a request of their own."""
        fields = complete_fields(prompt, sampling, terms)
        if sampling.prompt_logprobs is None:
            return self._said(fields, sampling, terms, "/completions")
        return self._heard(prompt, fields, sampling, terms)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, of length 1; see `Embed`."""
        parts = [list(texts[at : at + TEXTS]) for at in range(0, len(texts), TEXTS)]
        return [vector for vectors in await _together(self._vectors, parts) for vector in vectors]

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """How likely continuations are; see `Score`.

        As `Local` has it: what counts are the tokens from the first one on that differs from the context's own, so
        that each context is read alone too, once.
        """
        for context, continuation in pairs:
            if not continuation:
                raise InputError(f"A score needs a continuation: got ({context!r:.40}, '').")
        texts = list(dict.fromkeys(text for pair in pairs for text in (pair[0], pair[0] + pair[1]) if text))
        told = dict(zip(texts, await _together(self._told, texts), strict=True))
        return [
            _scored(told[context].tokens if context else (), told[context + said], context, said)
            for context, said in pairs
        ]

    async def tokenize(self, text: str) -> list[int]:
        """Ids of `text`, nothing around them."""
        reply = await self._ask("/tokenize", {"prompt": text, "add_special_tokens": False})
        if text and not reply.get("tokens"):  # llama.cpp's server, which has another name for the text
            reply = await self._ask("/tokenize", {"content": text, "add_special": False})
        ids = reply.get("tokens")
        if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids) or (text and not ids):
            raise broken("the tokens of a text", ids)
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        reply = await self._ask("/detokenize", {"tokens": list(ids)})
        text = reply.get("prompt", reply.get("content"))
        if not isinstance(text, str):
            raise broken("the text of tokens", text)
        return text_of(text)

    async def models(self) -> list[str]:
        """Names of the models that the endpoint serves."""
        return await self._wire.models()

    async def aclose(self) -> None:
        """Closes the connections of the running event loop."""
        await self._wire.aclose()

    # -- streams --------------------------------------------------------------------------------------

    async def _said(
        self,
        fields: Fields,
        sampling: Sampling,
        terms: Terms,
        path: str = "/chat/completions",
        end: float | None = None,
    ) -> AsyncGenerator[Delta]:
        end = _end_of(terms) if end is None else end
        reply = Reply(sampling.n, tops=sampling.logprobs or 0)
        async with aclosing(self._wire.events(path, await self._named(fields, end), end)) as events:
            async for data in events:
                try:
                    deltas = reply.take(data)
                except EndpointError as error:
                    raise await self._wire.failed(Unanswered.within(error.value), end) from None
                for delta in deltas:
                    yield delta
            for delta in reply.finish():
                yield delta

    async def _trimmed(
        self, messages: list[Message], fields: Fields, sampling: Sampling, terms: Terms
    ) -> AsyncGenerator[Delta]:
        turns = turns_of(messages)
        end = _end_of(terms)
        fewer = 0
        while True:
            gone = tuple(place for turn in turns[:fewer] for place in turn)
            kept = [message.as_dict() for place, message in enumerate(messages) if place not in gone]
            async with aclosing(self._said({**fields, "messages": kept}, sampling, terms, end=end)) as deltas:
                try:
                    first = await anext(deltas, None)
                except TooLong:
                    if fewer >= len(turns) - 1:
                        raise
                    fewer = min(max(1, 2 * fewer), len(turns) - 1)
                    continue
                if first is not None:
                    yield replace(first, dropped=gone)
                async for delta in deltas:
                    yield delta
                return

    async def _heard(
        self, prompt: str | Sequence[int], fields: Fields, sampling: Sampling, terms: Terms
    ) -> AsyncGenerator[Delta]:
        end = _end_of(terms)
        told = await self._told(prompt, sampling.prompt_logprobs or 0, end)
        yield Delta(heard=tuple(told.found))
        async with aclosing(self._said(fields, sampling, terms, "/completions", end)) as deltas:
            async for delta in deltas:
                yield delta

    # -- replies --------------------------------------------------------------------------------------

    async def _named(self, fields: Fields, end: float | None) -> Fields:
        """With the model's name."""
        if self.model is None:
            try:
                known = await self._wire.models(end)
            except Refusal as error:
                raise InputError(f"{self.url} does not list its models: say which by `model`.") from error
            if len(known) != 1:
                raise InputError(f"{self.url} has {len(known)} models; say which by `model`: {', '.join(known)}.")
            self.model = known[0]
        return {"model": self.model, **fields}

    async def _ask(self, path: str, fields: Fields, end: float | None = None) -> dict[str, Any]:
        reply = await self._wire.value(path, await self._named(fields, end), end)
        if not isinstance(reply, dict):
            raise broken("a reply", reply)
        return reply

    async def _told(self, prompt: str | Sequence[int], top: int = 1, end: float | None = None) -> Told:
        """The tokens of a prompt with their log-probabilities and the `top` best alternatives."""
        least = self._least
        fields: Fields = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "echo": True}
        fields |= {"logprobs": top, "temperature": 0.0, "max_tokens": least}
        try:
            reply = await self._ask("/completions", fields, end)
        except InputError as error:
            if least or isinstance(error, TooLong) or "max_tokens" not in str(error):
                raise
            self._least = 1  # it does not write nothing: what it writes is cut off
            return await self._told(prompt, top, end)
        told = _echoed(reply, prompt, top, least)
        if told is None:
            raise Refusal(f"{self.url} does not give the prompt back (`echo` with `logprobs`), so it cannot score.")
        return told

    async def _vectors(self, texts: list[str]) -> list[list[float]]:
        reply = await self._ask("/embeddings", {"input": texts})
        data = reply.get("data")
        if not isinstance(data, list) or len(data) != len(texts) or not all(isinstance(one, dict) for one in data):
            raise broken(f"`data` of {len(texts)} vectors", data)
        places = [one.get("index", place) for place, one in enumerate(data)]
        if sorted(places, key=str) != sorted(range(len(texts)), key=str):
            raise broken("`index` of the vectors", places)
        found = dict(zip(places, (_unit(one.get("embedding")) for one in data), strict=True))
        return [found[place] for place in range(len(texts))]


def _echoed(reply: Mapping[str, Any], prompt: str | Sequence[int], top: int, least: int) -> Told | None:
    """The prompt's tokens, without those that were written after it; None where the reply does not hold the prompt."""
    choices, usage = reply.get("choices"), reply.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise broken("`choices`", choices)
    known = choice.get("logprobs")
    if not isinstance(known, dict) or not known.get("tokens"):
        return None
    written = count_of(usage.get("completion_tokens")) if isinstance(usage, dict) else least
    told = told_of(known, top, cut=written)
    if isinstance(prompt, str):
        return told if text_of(choice.get("text")).startswith(prompt) else None
    return told if len(told.tokens) == len(prompt) else None


def _unit(value: Any) -> list[float]:
    """A vector, of length 1; one that is so near to it that its type explains it stays as it is."""
    numbers = isinstance(value, list) and all(isinstance(x, int | float) and math.isfinite(x) for x in value)
    if not numbers or not value:
        raise broken("a vector", value)
    length = math.hypot(*value)
    return [float(x) for x in value] if abs(length - 1) < 1e-3 or not length else [x / length for x in value]


def _scored(before: Sequence[str], whole: Told, context: str, said: str) -> Scored:
    common = next((at for at, (a, b) in enumerate(zip(before, whole.tokens, strict=False)) if a != b), len(before))
    begin = min(common, len(whole.tokens))
    if not context and whole.found[0] is None and not (whole.tokens[0] and said.startswith(whole.tokens[0])):
        begin = 1  # a begin token
    counted = whole.found[begin:]
    known = [one for one in counted if one is not None]
    if len(known) < len(counted):
        raise InputError(
            f"A score needs a context, or a tokenizer with a begin token: got ({context!r:.40}, {said!r:.40})."
        )
    return Scored(
        logprob=sum(one.logprob for one in known),
        tokens=len(known),
        greedy=all(one.top and one.logprob >= one.top[0].logprob for one in known),
    )


def _end_of(terms: Terms) -> float | None:
    """When, by the clock of the running loop, a request must be done."""
    return None if terms.timeout is None else asyncio.get_running_loop().time() + terms.timeout


async def _together(work: Callable[[A], Awaitable[B]], items: Sequence[A]) -> list[B]:
    """`work` of each item, some at once, in order; where one fails the rest are called off."""
    places = asyncio.Semaphore(TOGETHER)

    async def one(item: A) -> B:
        async with places:
            return await work(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
