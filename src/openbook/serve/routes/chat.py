"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from openbook.chat import Chat, Delta, Usage, collect_all
from openbook.serve import asking, saying
from openbook.serve.buffering import buffered
from openbook.serve.route import Call, Reply, Route, Stream
from openbook.serve.wire.chat import ChatChunk, ChatReply, ChatRequest


async def chat(call: Call, asked: ChatRequest) -> Reply:
    """Answers a conversation."""
    asking.check_stream(asked)
    stream = await call.aside(partial(answered, call, asked))
    if asked.stream:
        return Stream(_chunks(call, asked, stream))
    answers = await collect_all(stream)
    return ChatReply(
        id=call.id,
        created=int(time.time()),
        model=asked.model,
        choices=[saying.choice_of(place, answer, bool(asked.logprobs)) for place, answer in enumerate(answers)],
        usage=saying.usage_of(answers[0].usage, call.server.settings.cached_price),
        dropped=list(answers[0].dropped) or None,
        prompt_logprobs=saying.heard_of(answers[0].heard),
    )


def answered(call: Call, asked: ChatRequest) -> AsyncIterator[Delta]:
    """The deltas of the answer; what cannot be served is an error at once."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    tools, use = asking.tools_of(asked)
    stream = served.require(Chat).chat(
        [asking.message_of(message) for message in asked.messages],
        asking.sampling_of(asked, served.defaults, served.context),
        tools=tools,
        use=use,
        trim=asked.truncate is not None,
        terms=asking.terms_of(asked, call.caller.name, call.server.settings),
        variables=asked.chat_template_kwargs or {},
    )
    return call.server.metrics.metered(call, stream)


async def _chunks(call: Call, asked: ChatRequest, stream: AsyncIterator[Delta]) -> AsyncIterator[ChatChunk]:
    created, begun, usage = int(time.time()), set[int](), Usage()
    if asked.buffer in ("word", "sentence"):
        stream = buffered(stream, asked.buffer)
    async with aclosing(stream) as deltas:  # type: ignore[type-var]  # all of ours are generators
        async for delta in deltas:
            usage = delta.usage or usage
            chunk = saying.chunk_of(delta, delta.choice not in begun, bool(asked.logprobs))
            begun.add(delta.choice)
            yield ChatChunk(
                id=call.id,
                created=created,
                model=asked.model,
                choices=[chunk],
                dropped=list(delta.dropped) or None,
                prompt_logprobs=saying.heard_of(delta.heard),
            )
    if asked.stream_options is not None and asked.stream_options.include_usage:
        said = saying.usage_of(usage, call.server.settings.cached_price)
        yield ChatChunk(id=call.id, created=created, model=asked.model, choices=[], usage=said)


ROUTES = (
    Route(
        method="POST",
        path="/v1/chat/completions",
        handler=chat,
        request=ChatRequest,
        reply=ChatReply,
        chunk=ChatChunk,
        summary="Answer a conversation",
        works=True,
        subject="messages",
    ),
)
