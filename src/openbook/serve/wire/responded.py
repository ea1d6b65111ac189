"""`/v1/responses`: what comes back, whole and as events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openbook.serve.wire.basics import Asked, CompletionDetails, Event, PromptDetails, Said
from openbook.serve.wire.chat import LogprobOut
from openbook.serve.wire.responses import FunctionChosen, FunctionTool, TextAsked


class TextOut(Said, tag_field="type", tag="output_text"):
    """Text of an answer."""

    text: str
    annotations: list[dict[str, Any]] = msgspec.field(default_factory=list)
    logprobs: list[LogprobOut] = msgspec.field(default_factory=list)


class ThoughtOut(Said, tag_field="type", tag="reasoning_text"):
    """Text of what was thought."""

    text: str


class MessageDone(Said, tag_field="type", tag="message"):
    """What was said."""

    id: str
    status: str
    content: list[TextOut]
    role: str = "assistant"


class CallDone(Said, tag_field="type", tag="function_call"):
    """A function to be called."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str


class ReasoningDone(Said, tag_field="type", tag="reasoning"):
    """What was thought."""

    id: str
    status: str
    content: list[ThoughtOut]
    summary: list[dict[str, Any]] = msgspec.field(default_factory=list)


ItemOut = MessageDone | CallDone | ReasoningDone


class ResponseUsage(Said):
    """Tokens read and written; `billed_tokens` as elsewhere."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    billed_tokens: float
    input_tokens_details: PromptDetails
    output_tokens_details: CompletionDetails


class Failure(Said):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(Said):
    """Why a response is not whole."""

    reason: str


class ResponseOut(Said):
    """A response: what was asked, as it was understood, and what was answered.

    `dropped`: with truncation, places in the conversation (instructions and earlier turns counted) that were left out.
    """

    id: str
    created_at: int
    model: str
    status: str
    output: list[ItemOut]
    parallel_tool_calls: bool
    tool_choice: str | FunctionChosen
    tools: list[FunctionTool]
    text: TextAsked
    store: bool
    truncation: str
    temperature: float
    top_p: float
    object: str = "response"
    background: bool = False
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    previous_response_id: str | None = None
    usage: ResponseUsage | None = None
    dropped: list[int] = msgspec.field(default_factory=list)


class ResponseEvent(Event):
    """An event of a stream; which fields it has follows from its type."""

    response: ResponseOut | None = None
    output_index: int | None = None
    item: ItemOut | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: TextOut | ThoughtOut | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    name: str | None = None
    logprobs: list[LogprobOut] | None = None


class ItemList(Said):
    """The items that a response was asked with."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class ResponseDeleted(Said):
    """A response that is kept no longer."""

    id: str
    object: str = "response"
    deleted: bool = True


class ItemsQuery(Asked):
    """Which items, and in which order: the last one first, as the API has it, unless asked otherwise."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
