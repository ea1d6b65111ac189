"""Messages, deltas and answers: what the API writes comes back the same, and what is wrong is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from openbook.chat import (
    Answer,
    Delta,
    Logprob,
    Message,
    Tool,
    ToolCall,
    ToolCallPart,
    Usage,
    collect,
    collect_all,
    wait,
)
from openbook.errors import InputError, Refusal

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Ulm"}'}}


@pytest.mark.parametrize(
    "value",
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello", "name": "Ada"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "Rain", "tool_call_id": "call_1"},
    ],
)
def test_there_and_back(value: dict[str, Any]) -> None:
    message = Message.of(value)
    assert message.as_dict() == value
    assert Message.of(message) is message
    assert Message.of(message.as_dict()) == message


def test_parts_of_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert Message.of({"role": "user", "content": parts}).content == "one\ntwo"
    with pytest.raises(Refusal, match="type 'image_url'"):
        Message.of({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hello", "must be an object"),
        ({"content": "x"}, "`role` must be one of"),
        ({"role": "wizard", "content": "x"}, "got 'wizard'"),
        ({"role": "user"}, "needs `content`"),
        ({"role": "user", "content": 3}, "text or a list"),
        ({"role": "user", "content": [{"type": "text"}]}, "needs `text`"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "Only the assistant"),
        ({"role": "user", "content": "x", "colour": "red"}, "no field 'colour'"),
        ({"role": "user", "content": "x", "name": 3}, "`name`"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "must be an object with `id` and `function`"),
        ({"role": "assistant", "tool_calls": [{"id": "x", "function": {}}]}, "needs a `name`"),
        ({"role": "assistant", "tool_calls": "x"}, "must be a list"),
    ],
)
def test_what_is_no_message(value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Message.of(value)


def test_content_must_be_text() -> None:
    with pytest.raises(InputError, match=r"got list\. `Message\.of` reads parts"):
        Message(role="user", content=["x"])  # type: ignore[arg-type]


def test_tools_as_the_api_writes_them() -> None:
    tool = Tool(name="weather", description="Now", parameters={"type": "object"})
    assert tool.as_dict()["function"] == {"name": "weather", "description": "Now", "parameters": {"type": "object"}}


async def stream(*deltas: Delta) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


def test_deltas_together_are_the_answer() -> None:
    likely = Logprob(token="a", bytes=b"a", logprob=-0.5)
    answer = wait(
        collect(
            stream(
                Delta(dropped=(0, 1)),
                Delta(text="Hel", logprobs=(likely,)),
                Delta(text="lo", tool_calls=(ToolCallPart(index=1, id="b", name="g"),)),
                Delta(tool_calls=(ToolCallPart(index=0, id="a", name="f", arguments='{"x"'),)),
                Delta(tool_calls=(ToolCallPart(index=0, arguments=": 1}"),)),
                Delta(finish="tool_calls", usage=Usage(prompt_tokens=3, completion_tokens=4)),
            )
        )
    )
    calls = (ToolCall(id="a", name="f", arguments='{"x": 1}'), ToolCall(id="b", name="g", arguments=""))
    usage = Usage(prompt_tokens=3, completion_tokens=4)
    assert answer == Answer(
        text="Hello", tool_calls=calls, finish="tool_calls", logprobs=(likely,), usage=usage, dropped=(0, 1)
    )
    assert answer.usage.total_tokens == 7
    assert answer.message() == Message(role="assistant", content="Hello", tool_calls=calls)


def test_several_choices() -> None:
    def both() -> AsyncIterator[Delta]:
        return stream(
            Delta(choice=1, text="b"), Delta(text="a"), Delta(choice=1, finish="stop"), Delta(finish="length")
        )

    answers = wait(collect_all(both()))
    assert [(answer.text, answer.finish) for answer in answers] == [("a", "length"), ("b", "stop")]
    with pytest.raises(InputError, match="there are 2: use `collect_all`"):
        wait(collect(both()))


def test_an_answer_of_nothing_is_a_message_too() -> None:
    assert wait(collect(stream())).message() == Message.assistant("")
