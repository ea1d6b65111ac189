"""`/v1/responses`: a chat in the words of the Responses API. Nothing is kept unless its request says `store`: true."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from openbook.chat import Delta, Usage
from openbook.serve.asking import check_stream
from openbook.serve.buffering import buffered
from openbook.serve.errors import Rejected, rejected
from openbook.serve.items import chat_of
from openbook.serve.responding import Responding, new_id
from openbook.serve.route import Call, Reply, Route, Stream
from openbook.serve.routes.chat import answered
from openbook.serve.stored import Kept
from openbook.serve.wire.basics import FormatText
from openbook.serve.wire.responded import ItemList, ItemsQuery, ResponseDeleted, ResponseEvent, ResponseOut
from openbook.serve.wire.responses import InputText, Item, MessageItem, ResponseRequest, TextAsked, items_of


async def respond(call: Call, asked: ResponseRequest) -> Reply:
    """Answers a conversation of items."""
    check_stream(asked)
    items = items_of(asked.input)
    earlier: tuple[Item, ...] = ()
    if asked.previous_response_id is not None:
        earlier = call.server.stored.find(call.caller.name, asked.previous_response_id, "previous_response_id").said
    stream = await call.aside(partial(answered, call, chat_of(asked, [*earlier, *items])))
    responding = Responding(_response(call, asked), bool(asked.include))
    events = _events(call, asked, responding, stream, (*earlier, *items), tuple(items))
    if asked.stream:
        return Stream(events)
    async for _ in events:
        pass
    return responding.response


def _response(call: Call, asked: ResponseRequest) -> ResponseOut:
    """What is known of the response before it is answered."""
    defaults = call.server.models.find(asked.model).defaults
    return ResponseOut(
        id=new_id("resp_"),
        created_at=int(time.time()),
        model=asked.model,
        status="in_progress",
        output=[],
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        tool_choice=asked.tool_choice or "auto",
        tools=asked.tools or [],
        text=TextAsked(format=(asked.text and asked.text.format) or FormatText()),
        store=bool(asked.store),
        truncation=asked.truncation or "disabled",
        temperature=defaults.temperature if asked.temperature is None else asked.temperature,
        top_p=defaults.top_p if asked.top_p is None else asked.top_p,
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        previous_response_id=asked.previous_response_id,
    )


async def _events(
    call: Call,
    asked: ResponseRequest,
    responding: Responding,
    stream: AsyncIterator[Delta],
    said: tuple[Item, ...],
    items: tuple[Item, ...],
) -> AsyncIterator[ResponseEvent]:
    """The events of a response; it begins with its first delta, so that what cannot be served is a status."""
    if asked.buffer in ("word", "sentence"):
        stream = buffered(stream, asked.buffer)
    begun, usage = False, Usage()
    try:
        async with aclosing(stream) as deltas:  # type: ignore[type-var]  # all of ours are generators
            async for delta in deltas:
                for event in () if begun else responding.begun():
                    yield event
                begun = True
                usage = delta.usage or usage
                for event in responding.take(delta):
                    yield event
    except Exception as error:
        if begun and asked.stream:
            yield responding.failed(rejected(error))
        raise
    for event in responding.ended(usage, call.server.settings.cached_price):
        if event.response is not None and asked.store:
            _keep(call, event.response, said, items)
        yield event


def _keep(call: Call, response: ResponseOut, said: tuple[Item, ...], items: tuple[Item, ...]) -> None:
    whole = said + tuple(msgspec.convert(msgspec.to_builtins(response.output), list[Item]))
    stored = call.server.stored
    size = len(msgspec.json.encode(response)) + len(msgspec.json.encode(whole))
    kept = Kept(response=response, asked=items, said=whole, bytes=size, until=stored.until())
    stored.keep(call.caller.name, kept)


async def find(call: Call, _: None) -> Reply:
    """A response that was kept."""
    return call.server.stored.find(call.caller.name, call.path["id"]).response


async def delete(call: Call, _: None) -> Reply:
    """Forgets a response."""
    call.server.stored.remove(call.caller.name, call.path["id"])
    return ResponseDeleted(id=call.path["id"])


async def items(call: Call, _: None) -> Reply:
    """What a response was asked with."""
    kept, query = call.server.stored.find(call.caller.name, call.path["id"]), call.query
    assert isinstance(query, ItemsQuery), "the route says so"
    found = [_shown(item, f"{kept.response.id}-{place}") for place, item in enumerate(kept.asked)]
    if query.order == "desc":
        found.reverse()
    ids = [item["id"] for item in found]
    if query.after is not None:
        if query.after not in ids:
            raise Rejected(400, "`after` is the id of an item, and there is none such.", param="after")
        found = found[ids.index(query.after) + 1 :]
    page = found[: query.limit]
    return ItemList(
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(found) > len(page),
    )


def _shown(item: Item, number: str) -> dict[str, Any]:
    """An item with an id, its text as a part."""
    if isinstance(item, MessageItem) and isinstance(item.content, str) and item.role != "assistant":
        item = msgspec.structs.replace(item, content=[InputText(text=item.content)])
    shown = {name: value for name, value in msgspec.to_builtins(item).items() if value is not None}
    return {"id": number, **shown}


async def cancel(call: Call, _: None) -> Reply:
    """There is nothing to cancel: what was kept is done."""
    call.server.stored.find(call.caller.name, call.path["id"])
    raise Rejected(
        400,
        "Only a response in the background can be cancelled, and here none is. To stop one that runs close its "
        "connection, or POST /v1/requests/{id}/cancel with the x-request-id of its reply.",
    )


ROUTES = (
    Route(
        method="POST", path="/v1/responses", handler=respond, request=ResponseRequest, reply=ResponseOut,
        chunk=ResponseEvent, summary="Answer a conversation of items", works=True, subject="input",
    ),
    Route(method="GET", path="/v1/responses/{id}", handler=find, reply=ResponseOut, summary="A response that was kept"),
    Route(
        method="DELETE", path="/v1/responses/{id}", handler=delete, reply=ResponseDeleted, summary="Forget a response"
    ),
    Route(
        method="GET", path="/v1/responses/{id}/input_items", handler=items, reply=ItemList, query=ItemsQuery,
        summary="What a response was asked with",
    ),
    Route(
        method="POST", path="/v1/responses/{id}/cancel", handler=cancel, reply=ResponseOut,
        summary="Refused: nothing runs in the background",
    ),
)  # fmt: skip
