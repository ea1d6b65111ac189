"""What is said: messages in, deltas out, an answer at the end. Plain values, one for each notion of the OpenAI API.

here                                 there
Message                              an entry of `messages`
Tool, ToolCall, ToolCallPart         `tools[]`, `message.tool_calls[]`, `delta.tool_calls[]`
Delta                                one `choices[]` entry of a `chat.completion.chunk`
Answer                               one `choices[]` entry of a `chat.completion`
Usage                                `usage`
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from openbook.errors import InputError, Refusal

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
REASONING = "reasoning_content"  # the name that endpoints gave it
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that the assistant asks for. `arguments` is JSON text, as the model wrote it: parse it with care."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """As the API writes it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    @classmethod
    def of(cls, value: object) -> ToolCall:
        """Read what the API writes."""
        function = value.get("function") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(function, Mapping):
            raise InputError(f"A tool call must be an object with `id` and `function`: got {value!r:.100}.")
        name, arguments = function.get("name"), function.get("arguments", "")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        number = value.get("id", "")
        if not isinstance(name, str) or not name or not isinstance(number, str):
            raise InputError(f"A tool call needs a `name` and a textual `id`: got {value!r:.100}.")
        return cls(id=number, name=name, arguments=arguments)


@dataclass(frozen=True, kw_only=True)
class ToolCallPart:
    """What a delta adds to tool call number `index`: the parts of a call, joined, are the call."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the assistant may ask for; `parameters` is a JSON schema, to which `strict` holds its calls."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    strict: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As the API writes it."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        function["parameters"] = dict(self.parameters)
        return {"type": "function", "function": function | ({"strict": True} if self.strict else {})}


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """How tools may be used.

    mode      auto: the model decides; none: it must not call; required: it must call at least one
    name      of the one tool that it must call (mode "required")
    parallel  whether one answer may hold several calls
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "none", "required"):
            raise InputError(f"`mode` must be auto, none or required: got {self.mode!r:.60}.")
        if self.name is not None and self.mode != "required":
            raise InputError(f"A tool that must be called is required: got mode {self.mode!r} with name {self.name!r}.")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a request stands among the others: whose it is (prefixes are never shared between tenants), how urgent, and
    the seconds after which it is ended (an `Overdue` error)."""

    tenant: str = ""
    priority: int = 0
    timeout: float | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation. `content` is None only where the assistant does nothing but call tools."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # of the call that a "tool" message answers
    reasoning: str | None = None  # what the assistant thought before it spoke

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"`role` must be one of {', '.join(ROLES)}: got {self.role!r:.60}.")
        if self.content is None and not self.tool_calls:
            raise InputError(f"A message needs `content`: this one, of the {self.role}, has none.")
        if self.content is not None and not isinstance(self.content, str):
            raise InputError(f"`content` must be text: got {type(self.content).__name__}. `Message.of` reads parts.")
        if self.reasoning is not None and self.role != "assistant":
            raise InputError(f"Only the assistant has `reasoning_content`: this message is of the {self.role}.")
        if self.tool_calls and self.role != "assistant":
            raise InputError(f"Only the assistant calls tools: this message is of the {self.role}.")

    @classmethod
    def system(cls, content: str) -> Message:
        """What the assistant is told before the conversation."""
        return cls(role="system", content=content)

    @classmethod
    def user(cls, content: str) -> Message:
        """What a person says."""
        return cls(role="user", content=content)

    @classmethod
    def assistant(cls, content: str) -> Message:
        """What the model said."""
        return cls(role="assistant", content=content)

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """Read an entry of the API's `messages`. Text parts are joined with line ends; other parts are refused."""
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"A message must be an object with `role` and `content`: got {type(value).__name__}.")
        unknown = sorted(set(value) - {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", REASONING})
        if unknown:
            raise InputError(f"A message has no field {unknown[0]!r}.")
        for key in ("name", "tool_call_id", REASONING):
            if not isinstance(value.get(key), str | None):
                raise InputError(f"`{key}` of a message must be text: got {value[key]!r:.60}.")
        calls = value.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InputError(f"`tool_calls` must be a list: got {calls!r:.60}.")
        return cls(
            role=value.get("role", ""),
            content=_content(value.get("content")),
            name=value.get("name"),
            tool_calls=tuple(map(ToolCall.of, calls)),
            tool_call_id=value.get("tool_call_id"),
            reasoning=value.get(REASONING),
        )

    def as_dict(self) -> dict[str, Any]:
        """As the API writes it, and as chat templates read it."""
        value: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name is not None:
            value["name"] = self.name
        if self.tool_calls:
            value["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            value["tool_call_id"] = self.tool_call_id
        if self.reasoning is not None:
            value[REASONING] = self.reasoning
        return value


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens that were read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in a prefix cache
    reasoning_tokens: int = 0  # of the completion, its marks included

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """The log-probability of one output token under the model's own distribution, and of the best alternatives."""

    token: str  # as text; U+FFFD where the token is a part of a character
    bytes: bytes
    logprob: float
    top: tuple[Logprob, ...] = ()
    silent: bool = field(default=False, compare=False)  # a special token: the text has nothing of it; no wire says so


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What is new in one choice of the answer. Texts, joined, are the answer's; all else may come at any place."""

    choice: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()
    finish: Finish | None = None  # on the last delta of each choice
    logprobs: tuple[Logprob, ...] = ()
    usage: Usage | None = None  # on the last delta of all
    dropped: tuple[int, ...] = ()  # on the first: which messages were left out because the context is too short
    heard: tuple[Logprob | None, ...] = ()  # on the first: the tokens of the prompt, where `prompt_logprobs` asks


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All deltas of one choice together."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None  # None: the stream ended before the answer did
    logprobs: tuple[Logprob, ...] = ()
    usage: Usage = field(default_factory=Usage)
    dropped: tuple[int, ...] = ()
    heard: tuple[Logprob | None, ...] = ()

    def message(self) -> Message:
        """The answer as the next message of the conversation."""
        content = None if self.tool_calls and not self.text else self.text
        return Message(role="assistant", content=content, tool_calls=self.tool_calls, reasoning=self.reasoning or None)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How likely a continuation is: the sum of the log-probabilities of its tokens."""

    logprob: float
    tokens: int
    greedy: bool  # whether each of its tokens was the most likely one


def turns_of(messages: Sequence[Message]) -> list[list[int]]:
    """The places of messages by turns (a message of the user and what follows it); system messages belong to none."""
    turns: list[list[int]] = []
    for place, message in enumerate(messages):
        if message.role in ("system", "developer"):
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(place)
    return turns


async def collect_all(stream: AsyncIterator[Delta]) -> list[Answer]:
    """Read a stream to its end: one answer per choice."""
    choices: dict[int, list[Delta]] = {}
    usage = Usage()
    dropped: tuple[int, ...] = ()
    async for delta in stream:
        choices.setdefault(delta.choice, []).append(delta)
        usage = delta.usage or usage
        dropped = delta.dropped or dropped
    return [_joined(choices.get(choice, []), usage, dropped) for choice in range(max(choices, default=0) + 1)]


async def collect(stream: AsyncIterator[Delta]) -> Answer:
    """Read a stream of one choice to its end."""
    answers = await collect_all(stream)
    if len(answers) != 1:
        raise InputError(f"`collect` reads one choice and there are {len(answers)}: use `collect_all`.")
    return answers[0]


def _joined(deltas: Sequence[Delta], usage: Usage, dropped: tuple[int, ...]) -> Answer:
    calls: dict[int, list[ToolCallPart]] = {}
    for delta in deltas:
        for part in delta.tool_calls:
            calls.setdefault(part.index, []).append(part)
    return Answer(
        text="".join(delta.text for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        tool_calls=tuple(
            ToolCall(
                id="".join(part.id for part in parts),
                name="".join(part.name for part in parts),
                arguments="".join(part.arguments for part in parts),
            )
            for _, parts in sorted(calls.items())
        ),
        finish=next((delta.finish for delta in deltas if delta.finish), None),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        usage=usage,
        dropped=dropped,
        heard=next((delta.heard for delta in deltas if delta.heard), ()),
    )


def _content(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise InputError(f"`content` must be text or a list of parts: got {type(value).__name__}.")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise Refusal(f"Only text can be read: a message has a part of type {kind!r}.")
        text = part.get("text")
        if not isinstance(text, str):
            raise InputError(f"A text part needs `text`: got {part!r:.100}.")
        texts.append(text)
    return "\n".join(texts)
