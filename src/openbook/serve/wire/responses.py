"""`/v1/responses`: what is asked, as items of a conversation. What comes back is in `wire/responded.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openbook.serve.wire.basics import Asked, Buffer, Count, FormatObject, FormatText, Name, Share, Stops, instead
from openbook.serve.wire.chat import FunctionName

ItemId = str | None
Status = Literal["in_progress", "completed", "incomplete"] | None


class InputText(Asked, tag_field="type", tag="input_text"):
    """Text of a person, or of the one who writes the application."""

    text: str


class OutputText(Asked, tag_field="type", tag="output_text"):
    """Text of the model, as a reply had it."""

    text: str
    annotations: Annotated[list[dict[str, Any]], Meta(max_length=0)] | None = None
    logprobs: list[dict[str, Any]] | None = None


class RefusalText(Asked, tag_field="type", tag="refusal"):
    """Text of a model that refused."""

    refusal: str


class ReasoningText(Asked, tag_field="type", tag="reasoning_text"):
    """What the model thought."""

    text: str


class SummaryText(Asked, tag_field="type", tag="summary_text"):
    """A summary of what the model thought."""

    text: str


Parts = Annotated[list[InputText | OutputText | RefusalText], Meta(min_length=1)]


class MessageItem(Asked, tag_field="type", tag="message"):
    """A turn; `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts
    id: ItemId = None
    status: Status = None


class CallItem(Asked, tag_field="type", tag="function_call"):
    """A call that the model made."""

    call_id: str
    name: Annotated[str, Meta(min_length=1)]
    arguments: str
    id: ItemId = None
    status: Status = None


class ResultItem(Asked, tag_field="type", tag="function_call_output"):
    """What the function returned."""

    call_id: str
    output: str | Annotated[list[InputText], Meta(min_length=1)]
    id: ItemId = None
    status: Status = None


class ReasoningItem(Asked, tag_field="type", tag="reasoning"):
    """What the model thought before the item that follows; what is encrypted cannot be read here."""

    id: ItemId = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: Status = None


Item = MessageItem | CallItem | ResultItem | ReasoningItem


def _item_schema() -> dict[str, Any]:
    """JSON schema of an item, whole in itself, `type` of a message left free."""
    whole = msgspec.json.schema(list[Item])
    defined = whole["$defs"]

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(defined[value["$ref"].rpartition("/")[2]])
            return {key: inlined(part) for key, part in value.items() if key != "discriminator"}
        return [inlined(part) for part in value] if isinstance(value, list) else value

    found: dict[str, Any] = inlined(whole["items"])
    for one in found["anyOf"]:
        if one["title"] == "MessageItem":
            one["required"].remove("type")
    return found


# `type` of a message may be left out, which tagged types cannot say: items are checked by `items_of`, and the page has
# their schema from here.
Items = Annotated[
    str | Annotated[list[dict[str, Any]], Meta(min_length=1)],
    instead({"anyOf": [{"type": "string"}, {"type": "array", "items": _item_schema(), "minItems": 1}]}),
]


class _Input(msgspec.Struct):
    input: list[Item]


def items_of(given: str | list[dict[str, Any]]) -> list[Item]:
    """The items of a request; a text is a message of the user."""
    if isinstance(given, str):
        return [MessageItem(role="user", content=given)]
    return msgspec.convert({"input": [{"type": "message", **one} for one in given]}, _Input).input


class FunctionTool(Asked, tag_field="type", tag="function"):
    """A function that may be called; `parameters` is a JSON schema; calls are held to it unless `strict` is false."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChosen(Asked, tag_field="type", tag="function"):
    """The one function that must be called."""

    name: FunctionName


class FormatNamed(Asked, tag_field="type", tag="json_schema"):
    """A document of a schema."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    """Schemas are always kept to."""


class TextAsked(Asked):
    """What the text must be."""

    format: FormatText | FormatObject | FormatNamed | None = None
    verbosity: Literal["medium"] | None = None
    """Nothing but the default: a model is asked for less or more in words."""


class ResponseOptions(Asked):
    """What a stream says beside its events."""

    include_obfuscation: bool | None = None
    """No effect: events are never padded."""


class ResponseRequest(Asked):
    """A conversation to be answered. Nothing is stored unless `store` is true."""

    model: Name
    input: Items
    """A text, or items: messages, function calls and their outputs, reasoning."""
    instructions: str | None = None
    """A system message before all else; those of an earlier response do not count any more."""
    previous_response_id: str | None = None
    """Goes on where this response, which was stored, ended."""
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChosen | None = None
    parallel_tool_calls: bool | None = None
    text: TextAsked | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """auto: where the conversation is too long the oldest turns are left out, and `dropped` says which."""
    background: Literal[False] | None = None
    """Nothing runs in the background here."""
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stops | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    timeout: Annotated[float, Meta(gt=0.0, le=86400.0)] | None = None
    buffer: Buffer | None = None
