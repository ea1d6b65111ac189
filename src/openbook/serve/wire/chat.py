"""`/v1/chat/completions`: messages, tools, what comes back whole, and what comes back in chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openbook.serve.wire.basics import Asked, Choosing, Name, Natural, Said, Trimmed, UsageOut

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Asked, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


Content = str | Annotated[list[TextPart], Meta(min_length=1)]


class CalledIn(Asked):
    """Which function, with what."""

    name: Annotated[str, Meta(min_length=1)]
    arguments: str = ""


class ToolCallIn(Asked):
    """A call that the assistant made earlier."""

    id: str
    function: CalledIn
    type: Literal["function"] = "function"


class SystemIn(Asked, tag_field="role", tag="system"):
    """What the assistant is told."""

    content: Content
    name: str | None = None


class DeveloperIn(Asked, tag_field="role", tag="developer"):
    """What the assistant is told; another word for it."""

    content: Content
    name: str | None = None


class UserIn(Asked, tag_field="role", tag="user"):
    """What a person says."""

    content: Content
    name: str | None = None


class AssistantIn(Asked, tag_field="role", tag="assistant"):
    """What the model said: content, calls of tools, or both."""

    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCallIn] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    """With `audio` and `function_call`: clients send answers back whole, with what was not in them."""
    audio: None = None
    function_call: None = None


class ToolIn(Asked, tag_field="role", tag="tool"):
    """What a tool returned."""

    content: Content
    tool_call_id: str
    name: str | None = None


MessageIn = SystemIn | DeveloperIn | UserIn | AssistantIn | ToolIn


class Function(Asked):
    """A function that may be called; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefined(Asked):
    """A tool."""

    function: Function
    type: Literal["function"] = "function"


class FunctionNamed(Asked):
    """The name of a function."""

    name: FunctionName


class ToolNamed(Asked):
    """The one tool that must be called."""

    function: FunctionNamed
    type: Literal["function"] = "function"


class ChatRequest(Choosing, kw_only=True):
    """A conversation to be answered."""

    model: Name
    messages: Annotated[list[MessageIn], Meta(min_length=1)]
    max_completion_tokens: Natural | None = None
    """The same as max_tokens: give one of the two."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolDefined], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolNamed | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as enable_thinking."""
    truncate: Literal["oldest"] | None = None
    """Where the conversation is too long for the context: leave out the oldest turns, and say which (`dropped`)."""


class LogprobTop(Said):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobOut(LogprobTop):
    """A token that was written."""

    top_logprobs: list[LogprobTop]


class LogprobsOut(Said):
    """Of a choice."""

    content: list[LogprobOut]


class CalledOut(Trimmed):
    """Which function, with what, or the part of it that came now."""

    name: str | None = None
    arguments: str = ""


class ToolCallOut(Said):
    """A call of a tool."""

    id: str
    function: CalledOut
    type: str = "function"


class MessageOut(Trimmed):
    """The answer."""

    content: str | None
    role: str = msgspec.field(default_factory=lambda: "assistant")  # a factory's value is always written
    reasoning_content: str | None = None
    tool_calls: list[ToolCallOut] | None = None


class ChoiceOut(Said):
    """One of the answers."""

    index: int
    message: MessageOut
    finish_reason: str | None
    logprobs: LogprobsOut | None = None


class ChatReply(Trimmed):
    """All answers."""

    id: str
    created: int
    model: str
    choices: list[ChoiceOut]
    usage: UsageOut
    object: str = msgspec.field(default_factory=lambda: "chat.completion")
    dropped: list[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class ToolCallDelta(Trimmed):
    """What came of a call."""

    index: int
    id: str | None = None
    type: str | None = None
    function: CalledOut | None = None


class DeltaOut(Trimmed):
    """What came of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Said):
    """What came of one of the answers."""

    index: int
    delta: DeltaOut
    finish_reason: str | None = None
    logprobs: LogprobsOut | None = None


class ChatChunk(Trimmed):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str = msgspec.field(default_factory=lambda: "chat.completion.chunk")
    usage: UsageOut | None = None
    dropped: list[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
