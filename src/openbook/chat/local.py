"""A model of one's own behind the waist: messages → template → ids → tokens one by one → text → deltas.

    chat      the tokenizer's chat template, and only it, writes special tokens
              without a template: the contents of all messages, joined, are one text that the model continues
    complete  the prompt as it is, with what the tokenizer puts around a text
    score     teacher-forced log-probabilities

The model computes in a thread of its own, one step at a time, so that an event loop stays alive beside it and
conversations take turns by the token. Closing the stream of deltas stops the work before its next step.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from openbook.chat.choice import Choice, bytes_of, logprob_of
from openbook.chat.manners import Asked, Manners, check_tools
from openbook.chat.messages import Delta, Logprob, Message, Scored, Terms, Tool, ToolUse, Usage, turns_of
from openbook.chat.protocols import DEFAULT, FREELY, NOTHING, PLAIN
from openbook.errors import InputError, Overdue, Refusal, TooLong
from openbook.generate.loop import generate_ids, stream_ids
from openbook.generate.requests import Logprob as TokenLogprob
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling
from openbook.nn.model import LanguageModel
from openbook.text import Tokenizer
from openbook.text.engine import LONG


class Local:
    """Chat, Complete, Score and Tokenize over a model in this process.

    model, tokenizer   which must fit each other (TokenizerError)
    context            tokens of prompt and answer together at most; None: the model's own
    cached             False: the slow reference, every step over the whole text
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, context: int | None = None, cached: bool = True
    ) -> None:
        tokenizer.check_fits(model.spec.embed.vocab)
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.spec.context if context is None else context
        self._cached = cached
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="openbook-local")

    @property
    def continues(self) -> bool:
        """Whether `chat` continues the text of the conversation, for want of a chat template."""
        return not self.tokenizer.templates

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
        """The answer, as it comes; see `Chat`. What cannot be served is an error at once, before the first delta.

        With `trim`, turns (a message of the user and what follows it) are left out from the oldest on, never the system
        messages nor the last turn, until there is room for `max_tokens` or a quarter of the context.
        """
        shown = check_tools(tools, use)
        heard = [Message.of(message) for message in messages]
        if not heard:
            raise InputError("The conversation is empty. Give at least one message.")
        ids, dropped = self._fit(heard, sampling, trim, partial(self._ids, tools=shown, variables=variables))
        return self._answer(self._manners.asked(ids, dropped, sampling, shown, use), terms)

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling = DEFAULT, *, terms: Terms = PLAIN
    ) -> AsyncIterator[Delta]:
        """What follows `prompt`, as it comes; see `Complete`."""
        return self._answer(Asked(ids=self._ids_of(prompt), sampling=sampling), terms)

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """How likely continuations are; see `Score`.

        Context and continuation are encoded as one text. What counts are the tokens from the first one on that differs
        from the context's own: where a token spans the border, the whole token.
        """
        if not pairs:
            return []
        wholes: list[list[int]] = []
        begins: list[int] = []
        for context, continuation in pairs:
            before = self._around(self.tokenizer.encode(context))
            whole = self._around(self.tokenizer.encode(context + continuation))
            common = next((at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
            begins.append(min(common, len(whole)))
            wholes.append(whole)
            if not continuation or begins[-1] == 0:
                missing = "a continuation" if not continuation else "a context, or a tokenizer with a begin token"
                raise InputError(f"A score needs {missing}: got ({context!r:.40}, {continuation!r:.40}).")
        asked = Sampling(max_tokens=0, prompt_logprobs=1)
        heard = await self._heard(wholes, asked)
        return [_scored(logprobs[begin:]) for logprobs, begin in zip(heard, begins, strict=True)]

    async def _heard(self, texts: list[list[int]], asked: Sampling) -> list[Sequence[TokenLogprob | None]]:
        """The log-probabilities of the tokens of texts."""
        read = partial(generate_ids, self.model, texts, asked, context=self.context, cached=self._cached)
        results = await asyncio.get_running_loop().run_in_executor(self._worker, read)
        return [result.prompt_logprobs or [] for result in results]

    async def _listened(
        self,
        ids: list[int],
        asked: Sampling,
        terms: Terms,  # noqa: ARG002  # it is read at once
    ) -> Sequence[TokenLogprob | None]:
        """Those of one prompt, as a request among others."""
        (found,) = await self._heard([ids], asked)
        return found

    async def tokenize(self, text: str) -> list[int]:
        """Ids of `text`, nothing around them."""
        return await asyncio.to_thread(self.tokenizer.encode, text) if len(text) > LONG else self.tokenizer.encode(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(ids)

    def count(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] = NOTHING,
    ) -> int:
        """Tokens of the prompt that `chat` makes of these messages and tools."""
        return len(self._ids([Message.of(message) for message in messages], tools, variables))

    # -- prompts ------------------------------------------------------------------------------------------------------

    @cached_property
    def _manners(self) -> Manners:
        return Manners(self.tokenizer)

    def _ids(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), variables: Mapping[str, Any] = NOTHING
    ) -> list[int]:
        if not self.continues:
            return self._manners.ids(messages, tools, variables)
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            raise Refusal("This model has no chat template, so it does not call tools. Describe them in the text.")
        if variables:
            raise Refusal("This model has no chat template, so there is nothing that could read its variables.")
        return self._prompt(joined(messages))

    def _ids_of(self, prompt: str | Sequence[int]) -> list[int]:
        return self._prompt(prompt) if isinstance(prompt, str) else list(prompt)

    def _prompt(self, text: str) -> list[int]:
        """Ids of a text with what the tokenizer puts around it; for an empty one the begin token, if there is one."""
        ids = self.tokenizer.prompt(text)
        return ids if ids or self.tokenizer.bos is None else [self.tokenizer.bos]

    def _around(self, ids: list[int]) -> list[int]:
        """`ids` with what begins a text."""
        before = self.tokenizer.prefix or (() if self.tokenizer.bos is None else (self.tokenizer.bos,))
        return [*before, *ids]

    def _fit(
        self, messages: list[Message], sampling: Sampling, trim: bool, ids_of: Callable[[list[Message]], list[int]]
    ) -> tuple[list[int], tuple[int, ...]]:
        """Ids of the messages that fit the context, and the places of those that do not."""
        ids = ids_of(messages)
        if self.context is None:
            return ids, ()
        if not trim:
            if len(ids) >= self.context:
                raise TooLong(
                    f"The conversation has {len(ids)} tokens and the context holds {self.context}, answer included. "
                    "Shorten it, or ask for `trim`, which leaves out the oldest turns."
                )
            return ids, ()
        limit = self.context - max(1, min(sampling.max_tokens, self.context // 4))
        turns = turns_of(messages)

        def without(count: int) -> list[int]:
            gone = {place for turn in turns[:count] for place in turn}
            return ids_of([message for place, message in enumerate(messages) if place not in gone])

        count = 0
        if len(ids) > limit and len(turns) > 1:
            count = bisect_left(range(len(turns) - 1), True, lo=1, key=lambda fewer: len(without(fewer)) <= limit)
            ids = without(count)
        if len(ids) >= self.context:
            raise TooLong(
                f"The last turn alone, with the system messages, has {len(ids)} tokens and the context holds "
                f"{self.context}, answer included. Shorten it."
            )
        return ids, tuple(place for turn in turns[:count] for place in turn)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, asked: Asked, terms: Terms) -> AsyncIterator[Delta]:
        return self._deltas(self._tokens(asked.ids, for_model(asked.sampling), terms), asked, terms)

    def _tokens(self, ids: list[int], sampling: Sampling, terms: Terms) -> AsyncGenerator[Token]:
        """The tokens that follow `ids`, as they come; what cannot be served is an error at once.

        Stop strings are looked for in the text (see Choice), not here.
        """
        tokens = stream_ids(
            self.model,
            [ids],
            sampling,
            eos=self.tokenizer.stops,
            start=start_of(self.model, self.tokenizer),
            context=self.context,
            cached=self._cached,
            token_bytes=bytes_of(self.tokenizer),
        )
        return self._in_thread(tokens, terms)

    async def _in_thread(self, tokens: Iterator[Token], terms: Terms) -> AsyncGenerator[Token]:
        loop = asyncio.get_running_loop()
        end = None if terms.timeout is None else loop.time() + terms.timeout
        try:
            while (token := await loop.run_in_executor(self._worker, next, tokens, None)) is not None:
                yield token
                if end is not None and loop.time() > end and token.finish is None:
                    raise overdue(terms)
        finally:
            with suppress(RuntimeError):  # at the end of the program, when no thread is left to stop
                self._worker.submit(_close, tokens)  # behind the step that may still be running

    async def _deltas(self, tokens: AsyncGenerator[Token], asked: Asked, terms: Terms) -> AsyncIterator[Delta]:
        sampling, ids, dropped = asked.sampling, asked.ids, asked.dropped
        choices = [
            Choice(index, self.tokenizer, sampling, asked.hearing(index), shown=asked.shown, once=asked.once)
            for index in range(sampling.n)
        ]
        said = 0
        async with aclosing(tokens):
            if sampling.prompt_logprobs is not None:
                heard = await self._prompt_logprobs(ids, sampling.prompt_logprobs, terms)
                yield Delta(dropped=dropped, heard=heard)
            elif dropped:
                yield Delta(dropped=dropped)
            async for token in tokens:
                choice = choices[token.choice]
                if choice.finish:
                    continue
                said += 1
                delta = choice.take(token)
                over = all(choice.finish for choice in choices)
                if over:
                    usage = Usage(
                        prompt_tokens=len(ids),
                        completion_tokens=said,
                        cached_tokens=token.cached,
                        reasoning_tokens=sum(choice.reasoning_tokens for choice in choices),
                    )
                    delta = replace(delta, usage=usage)
                if delta.text or delta.reasoning or delta.tool_calls or delta.finish or delta.logprobs:
                    yield delta
                if over:
                    return
            for choice in choices:  # nothing was to be written: max_tokens is 0
                yield Delta(choice=choice.index, finish="length", usage=Usage(prompt_tokens=len(ids)))

    async def _prompt_logprobs(self, ids: list[int], top: int, terms: Terms) -> tuple[Logprob | None, ...]:
        """The tokens of a prompt with their log-probabilities; the first has none, for nothing precedes it."""
        _, *found = await self._listened(ids, Sampling(max_tokens=0, prompt_logprobs=top), terms)
        specials = frozenset(self.tokenizer.specials.values())
        return None, *(None if one is None else logprob_of(self.tokenizer, one, one.id in specials) for one in found)


def for_model(sampling: Sampling) -> Sampling:
    """What the model is asked: stop strings are looked for in the text, and the prompt is read by another way."""
    return replace(sampling, stop=(), prompt_logprobs=None)


def overdue(terms: Terms) -> Overdue:
    """The error of a request that was not done in time."""
    return Overdue(f"The request was not done after its `timeout` of {terms.timeout} seconds.")


def start_of(model: LanguageModel, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the output of an encoder-decoder begins with; nothing for other models."""
    if model.spec.source is None:
        return ()
    start = model.config.get("decoder_start_token_id", tokenizer.pad)
    language = model.config.get("forced_bos_token_id")  # of a model of many languages: the one it answers in
    return tuple(int(one) for one in (start, language) if one is not None)


def joined(messages: Sequence[Message]) -> str:
    """The text that a model without a chat template continues: all contents, as they are, with one space where neither
    side of a border has any."""
    text = ""
    for message in messages:
        content = message.content or ""
        touching = text and content and not text[-1].isspace() and not content[0].isspace()
        text += " " + content if touching else content
    return text


def _scored(logprobs: Sequence[TokenLogprob | None]) -> Scored:
    known = [logprob for logprob in logprobs if logprob is not None]
    return Scored(
        logprob=sum(logprob.logprob for logprob in known),
        tokens=len(known),
        greedy=all(logprob.top[0][0] == logprob.id for logprob in known),
    )


def _close(tokens: Iterator[Token]) -> None:
    if isinstance(tokens, Generator):
        tokens.close()
