"""`/v1/responses` with the official client: items in, items and events out, what is kept, and what is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from openbook.chat import Delta, Logprob, Message, Scripted, Tool, ToolCall, ToolCallPart, ToolUse, Usage
from openbook.errors import Busy
from openbook.serve.errors import Rejected
from openbook.serve.settings import Settings
from tests.serve.conftest import Serving, Start

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    "strict": True,
}
CALLS = [
    Delta(reasoning="Two "),
    Delta(reasoning="places."),
    Delta(text="I will "),
    Delta(text="look."),
    Delta(tool_calls=(ToolCallPart(index=0, id="call_a", name="weather", arguments='{"place":'),)),
    Delta(tool_calls=(ToolCallPart(index=1, id="call_b", name="weather", arguments='{"place": "Rome"}'),)),
    Delta(tool_calls=(ToolCallPart(index=0, arguments=' "Oslo"}'),)),
    Delta(finish="tool_calls", usage=Usage(prompt_tokens=9, completion_tokens=7, cached_tokens=4)),
]


def client_of(serving: Serving) -> OpenAI:
    """The official client, which tries once."""
    return OpenAI(base_url=serving.v1, api_key="none", max_retries=0)


def test_text_in_text_out(put: Start) -> None:
    script = Scripted("It is.")
    with client_of(put(tiny=script)) as client:
        reply = client.responses.create(
            model="tiny", input="Is it?", instructions="Be brief.", max_output_tokens=20, temperature=0.5, top_p=0.9,
            metadata={"a": "b"}, user="me", text={"format": {"type": "text"}},
        )  # fmt: skip
    assert reply.output_text == "It is."
    assert (reply.status, reply.object, reply.metadata, reply.store) == ("completed", "response", {"a": "b"}, False)
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    (call,) = script.calls
    assert call.messages == (Message.system("Be brief."), Message.user("Is it?"))
    assert (call.sampling.max_tokens, call.sampling.temperature, call.sampling.top_p) == (20, 0.5, 0.9)


def test_items_of_every_kind_become_messages(put: Start) -> None:
    script = Scripted("Cold.")
    asked: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Oslo?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "[]"},
        {"type": "function_call_output", "call_id": "c1", "output": "4 degrees"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "5"}]},
        {"role": "assistant", "content": "It is cold."},
        {"role": "user", "content": "How cold?"},
    ]
    with client_of(put(tiny=script)) as client:
        client.responses.create(
            model="tiny", input=asked, tools=[WEATHER],
            tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False,
        )  # fmt: skip
    (call,) = script.calls
    calls = tuple(ToolCall(id=f"c{n}", name="weather", arguments=text) for n, text in ((1, "{}"), (2, "[]")))
    assert call.messages == (
        Message(role="developer", content="Be kind."),
        Message.user("Oslo?"),
        Message(role="assistant", content="I look.", reasoning="Hm.", tool_calls=calls),
        Message(role="tool", content="4 degrees", tool_call_id="c1"),
        Message(role="tool", content="5", tool_call_id="c2"),
        Message.assistant("It is cold."),
        Message.user("How cold?"),
    )
    assert call.tools == (
        Tool(name="weather", description="Of a place", parameters=WEATHER["parameters"], strict=True),
    )
    assert call.use == ToolUse(mode="required", name="weather", parallel=False)


def test_events_in_the_published_order(put: Start) -> None:
    with client_of(put(tiny=Scripted(["It ", "is."]))) as client:
        events = list(client.responses.create(model="tiny", input="Is it?", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))


def test_events_are_named(put: Start) -> None:
    serving = put(tiny=Scripted(["A", "B"]))
    with serving.http.stream("POST", "/v1/responses", json={"model": "tiny", "input": "?", "stream": True}) as reply:
        lines = list(reply.iter_lines())
    assert lines[0] == "event: response.created"
    assert lines[1].startswith('data: {"type":"response.created"')
    assert lines[-2:] == ["data: [DONE]", ""]


def test_streamed_is_whole_with_reasoning_text_and_parallel_calls(put: Start) -> None:
    with client_of(put(tiny=Scripted(CALLS, CALLS))) as client:
        asked: dict[str, Any] = {"model": "tiny", "input": "Weather?", "tools": [WEATHER]}
        whole = client.responses.create(**asked)
        with client.responses.stream(**asked) as stream:
            events = list(stream)
            final = stream.get_final_response()
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [item.type for item in whole.output] == kinds
    assert whole.status == "completed"
    changing = {"id", "created_at", "parsed", "parsed_arguments", "phase"}

    def same(items: list[Any]) -> list[Any]:
        return [item.model_dump(exclude=changing, exclude_none=True) for item in items]

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if key not in changing}
        return [plain(part) for part in value] if isinstance(value, list) else value

    assert plain(same(final.output)) == plain(same(whole.output))
    calls = [item for item in whole.output if item.type == "function_call"]
    assert [(call.call_id, call.arguments) for call in calls] == [
        ("call_a", '{"place": "Oslo"}'),
        ("call_b", '{"place": "Rome"}'),
    ]
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert (said, thought) == ("I will look.", "Two places.")
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == ['{"place": "Oslo"}', '{"place": "Rome"}']
    usage = whole.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.input_tokens_details.cached_tokens) == (9, 7, 4)


def test_too_long_an_answer_is_incomplete(put: Start) -> None:
    with client_of(put(tiny=Scripted([Delta(text="It", finish="length")] * 2))) as client:
        reply = client.responses.create(model="tiny", input="Is it?", max_output_tokens=1)
    assert reply.status == "incomplete"
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[0].type == "message"
    assert reply.output[0].status == "incomplete"


def test_a_stream_that_fails_says_so(put: Start) -> None:
    serving = put(tiny=Scripted(["It", RuntimeError("secret")], Busy("Full.", retry_after=3)))
    body = {"model": "tiny", "input": "?", "stream": True}
    with serving.http.stream("POST", "/v1/responses", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert "event: response.failed" in lines
    assert lines[-1].startswith('data: {"error"')
    assert "secret" not in "".join(lines)
    assert serving.http.post("/v1/responses", json=body).status_code == 429  # before its first event


def test_logprobs_where_they_are_asked_for(put: Start) -> None:
    one = Logprob(token="A", bytes=b"A", logprob=-0.5, top=(Logprob(token="B", bytes=b"B", logprob=-1.0),))
    script = Scripted(*[[Delta(logprobs=(one,)), Delta(text="AA", logprobs=(one,)), Delta(logprobs=(one,))]] * 2)
    asked: dict[str, Any] = {"model": "tiny", "input": "?", "top_logprobs": 1}
    with client_of(put(tiny=script)) as client:
        reply = client.responses.create(**asked, include=["message.output_text.logprobs"])
        with pytest.raises(BadRequestError, match="top_logprobs"):
            client.responses.create(**asked)
        events = list(client.responses.create(**asked, include=["message.output_text.logprobs"], stream=True))
    assert reply.output[0].type == "message"
    assert reply.output[0].content[0].type == "output_text"
    assert [found.logprob for found in reply.output[0].content[0].logprobs or ()] == [-0.5] * 3
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [len(event.logprobs) for event in deltas] == [2]
    assert script.calls[0].sampling.logprobs == 1


def test_formats_and_the_clients_parse_helper(put: Start) -> None:
    class Answer(BaseModel):
        good: bool

    script = Scripted('{"good": true}', '{"good": false}')
    with client_of(put(tiny=script)) as client:
        parsed = client.responses.parse(model="tiny", input="?", text_format=Answer)
        client.responses.create(model="tiny", input="?", text={"format": {"type": "json_object"}})
    assert parsed.output_parsed == Answer(good=True)
    grammars = [type(call.sampling.grammar).__name__ for call in script.calls]
    assert grammars == ["Schema", "Json"]


def test_nothing_is_kept_unless_asked(put: Start) -> None:
    serving = put(tiny=Scripted("One.", "Two.", "Three."))
    with client_of(serving) as client:
        first = client.responses.create(model="tiny", input="?")
        with pytest.raises(NotFoundError, match="store"):
            client.responses.retrieve(first.id)
        with pytest.raises(NotFoundError):
            client.responses.create(model="tiny", input="?", previous_response_id=first.id)
        assert len(serving.server.stored) == 0
        second = client.responses.create(model="tiny", input="1?", store=True, instructions="Be brief.")
        assert client.responses.retrieve(second.id).output_text == "Two."
        third = client.responses.create(model="tiny", input="2?", store=True, previous_response_id=second.id)
        assert third.previous_response_id == second.id
        items = client.responses.input_items.list(third.id)
        assert [item.content[0].text for item in items.data] == ["2?"]  # type: ignore[union-attr]
        with pytest.raises(BadRequestError, match="background"):
            client.responses.cancel(third.id)
        client.responses.delete(second.id)
        with pytest.raises(NotFoundError):
            client.responses.retrieve(second.id)
    script = serving.server.models.find("tiny").endpoint
    assert isinstance(script, Scripted)
    assert [message.content for message in script.calls[-1].messages] == ["1?", "Two.", "2?"]


def test_pages_of_input_items(put: Start) -> None:
    with client_of(put(tiny=Scripted("A"))) as client:
        kept = client.responses.create(
            model="tiny", store=True, input=[{"role": "user", "content": str(n)} for n in range(5)]
        )
        said = [item.content[0].text for item in client.responses.input_items.list(kept.id, limit=2)]  # type: ignore[union-attr]
        assert said == ["4", "3", "2", "1", "0"]
        with pytest.raises(BadRequestError, match="limit"):
            client.responses.input_items.list(kept.id, limit=0)
        with pytest.raises(BadRequestError, match="Unknown parameter `other`"):
            client.responses.input_items.list(kept.id, extra_query={"other": "1"})


def test_what_is_kept_is_bounded(start: Start) -> None:
    settings = Settings(port=0, stored=2, stored_bytes=6000)
    serving = start(settings, tiny=Scripted(*["A"] * 4, "B" * 9000))
    with client_of(serving) as client:
        ids = [client.responses.create(model="tiny", input="?", store=True).id for _ in range(4)]
        assert len(serving.server.stored) == 2
        assert serving.server.stored.bytes <= 6000
        with pytest.raises(NotFoundError):
            client.responses.retrieve(ids[1])
        assert client.responses.retrieve(ids[3]).id == ids[3]
        client.responses.create(model="tiny", input="?", store=True)  # alone larger than all that is kept
        assert client.responses.retrieve(ids[3]).id == ids[3]
        client.responses.delete(ids[2])
        client.responses.delete(ids[3])
    assert (len(serving.server.stored), serving.server.stored.bytes) == (0, 0)


def test_what_is_kept_is_its_callers_own_and_forgotten_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = start(Settings(port=0, stored_seconds=60.0), tiny=Scripted("A"))
    asked = {"model": "tiny", "input": "?", "store": True}
    number = serving.http.post("/v1/responses", json=asked).json()["id"]
    stored = serving.server.stored
    assert stored.find("", number).response.id == number
    with pytest.raises(Rejected, match="no response"):
        stored.find("somebody else", number)
    later = time.monotonic() + 61
    monkeypatch.setattr("openbook.serve.stored.time.monotonic", lambda: later)
    with pytest.raises(Rejected, match="60 seconds"):
        stored.find("", number)
    assert (len(stored), stored.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
        ({"input": [{"role": "user", "content": "x", "colour": "red"}]}, "input[0].colour"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(put: Start, field: dict[str, Any], named: str) -> None:
    reply = put(tiny=Scripted()).http.post("/v1/responses", json={"model": "tiny", "input": "?"} | field)
    assert reply.status_code == 400
    assert named in reply.text


def test_a_real_model(real: Serving) -> None:
    with client_of(real) as client:
        asked: dict[str, Any] = {"model": "tiny", "input": "The fox", "max_output_tokens": 12}
        whole = client.responses.create(**asked, extra_body={"seed": 3})
        events = list(client.responses.create(**asked, stream=True, extra_body={"seed": 3}))
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert events[-1].type == "response.incomplete"
        assert whole.output_text == said == events[-1].response.output_text
        assert whole.usage is not None
        assert whole.usage.output_tokens == 12
        with pytest.raises(BadRequestError) as refused:
            client.responses.create(model="tiny", input="word " * 3000)
        assert refused.value.code == "context_length_exceeded"
        turns: list[Any] = [{"role": "user", "content": "word " * 60} for _ in range(6)]
        trimmed = client.responses.create(model="tiny", input=turns, truncation="auto", max_output_tokens=4)
        assert trimmed.model_extra is not None
        assert trimmed.model_extra["dropped"]
