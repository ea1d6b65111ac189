"""The official client, unchanged: sync and async, streams and wholes, every kind of answer and of error."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from openbook.chat import Call, Delta, Logprob, Message, Scripted, ToolCallPart, Usage
from openbook.errors import Busy, InputError, Overdue, RemoteError
from openbook.serve.settings import Settings
from tests.serve.conftest import Serving, Start

ASK: list[Any] = [{"role": "user", "content": "The fox"}]
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
A = Logprob(token="A", bytes=b"A", logprob=-0.5, top=(Logprob(token="B", bytes=b"B", logprob=-1.0),))


def client_of(serving: Serving, **more: Any) -> OpenAI:
    """The client, which tries once."""
    return OpenAI(base_url=serving.v1, api_key="none", max_retries=0, **more)


def said(chunks: Any, choice: int = 0) -> str:
    """The text of one choice of a stream."""
    return "".join(
        one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == choice
    )  # fmt: skip


# -- chat -------------------------------------------------------------------------------------------------------------


def test_chat_whole_and_streamed(put: Start) -> None:
    script = Scripted("Hello.", ["Hel", "lo."])
    with client_of(put(tiny=script)) as client:
        whole = client.chat.completions.create(model="tiny", messages=ASK)
        asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert whole.choices[0].message.content == said(chunks) == "Hello."
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "stop"
    assert (whole.object, chunks[0].object) == ("chat.completion", "chat.completion.chunk")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert [call.messages for call in script.calls] == [(Message.user("The fox"),)] * 2


def test_the_async_client(put: Start) -> None:
    serving = put(tiny=Scripted("Hello.", ["Hel", "lo."]))

    async def ask() -> tuple[str | None, str]:
        async with AsyncOpenAI(base_url=serving.v1, api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(model="tiny", messages=ASK)
            stream = await client.chat.completions.create(model="tiny", messages=ASK, stream=True)
            return whole.choices[0].message.content, said([chunk async for chunk in stream])

    assert asyncio.run(ask()) == ("Hello.", "Hello.")


def test_choices_come_mixed_and_are_told_apart(put: Start) -> None:
    mixed = [
        Delta(text="a"), Delta(choice=1, text="x"), Delta(text="b", finish="stop"),
        Delta(choice=1, text="y", finish="length", usage=Usage(prompt_tokens=1, completion_tokens=4)),
    ]  # fmt: skip
    with client_of(put(tiny=Scripted(mixed, mixed))) as client:
        whole = client.chat.completions.create(model="tiny", messages=ASK, n=2)
        chunks = list(client.chat.completions.create(model="tiny", messages=ASK, n=2, stream=True))
    assert [(one.message.content, one.finish_reason) for one in whole.choices] == [("ab", "stop"), ("xy", "length")]
    assert [said(chunks, 0), said(chunks, 1)] == ["ab", "xy"]


def test_tools_are_called_and_answered(put: Start) -> None:
    deltas = [
        Delta(reasoning="Hm."),
        Delta(tool_calls=(ToolCallPart(index=0, id="call_a", name="weather", arguments='{"a"'),)),
        Delta(tool_calls=(ToolCallPart(index=0, arguments=": 1}"),)),
        Delta(tool_calls=(ToolCallPart(index=1, id="call_b", name="weather", arguments="{}"),), finish="tool_calls"),
    ]
    script = Scripted(deltas, deltas, "Cold.")
    with client_of(put(tiny=script)) as client:
        whole = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required")
        with client.chat.completions.stream(model="tiny", messages=ASK, tools=[WEATHER]) as stream:
            final = stream.get_final_completion()
        message = whole.choices[0].message
        back = [*ASK, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": "call_a", "content": "4"}]
        client.chat.completions.create(model="tiny", messages=back)
    assert whole.choices[0].finish_reason == "tool_calls"
    for calls in (message.tool_calls, final.choices[0].message.tool_calls):
        assert [(call.id, call.function.arguments) for call in calls or ()] == [
            ("call_a", '{"a": 1}'),
            ("call_b", "{}"),
        ]  # type: ignore[union-attr]
    assert message.content is None
    assert message.model_extra == {"reasoning_content": "Hm."}
    heard = script.calls[2].messages
    assert [call.id for call in heard[1].tool_calls] == ["call_a", "call_b"]
    assert (heard[1].reasoning, heard[2].tool_call_id) == ("Hm.", "call_a")
    assert script.calls[0].use.mode == "required"


def test_schemas_and_the_parse_helper(put: Start) -> None:
    class Answer(BaseModel):
        good: bool

    script = Scripted('{"good": true}')
    with client_of(put(tiny=script)) as client:
        parsed = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Answer)
    assert parsed.choices[0].message.parsed == Answer(good=True)
    assert "good" in str(script.calls[0].sampling.grammar)


def test_logprobs(put: Start) -> None:
    deltas = [Delta(text="A", logprobs=(A,)), Delta(text="A", logprobs=(A,))]
    script = Scripted(deltas, deltas)
    with client_of(put(tiny=script)) as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "logprobs": True, "top_logprobs": 1}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert script.calls[0].sampling.logprobs == 1
    assert whole.choices[0].logprobs is not None
    found = whole.choices[0].logprobs.content or []
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content or ()]
    assert found == streamed
    assert [(one.token, one.bytes, one.logprob) for one in found] == [("A", [65], -0.5)] * 2
    assert [(top.token, top.logprob) for top in found[0].top_logprobs] == [("B", -1.0)]


# -- completions, embeddings, models ----------------------------------------------------------------------------------


def test_completions_of_many_prompts(put: Start) -> None:
    def twice(call: Call) -> list[Delta]:
        text = call.prompt.upper()
        usage = Usage(prompt_tokens=2, completion_tokens=3)
        return [Delta(text=text), Delta(choice=1, text=text * 2, finish="stop"), Delta(finish="length", usage=usage)]

    with client_of(put(tiny=Scripted(*[twice] * 4))) as client:
        whole = client.completions.create(model="tiny", prompt=["a", "b"], n=2, echo=True)
        chunks = list(client.completions.create(model="tiny", prompt=["a", "b"], n=2, echo=True, stream=True))
    assert [(one.index, one.text) for one in whole.choices] == [(0, "aA"), (1, "aAA"), (2, "bB"), (3, "bBB")]
    for index in range(4):
        parts = [one.text for chunk in chunks for one in chunk.choices if one.index == index]
        assert "".join(parts) == whole.choices[index].text
    assert whole.usage is not None
    assert whole.usage.total_tokens == 10


def test_embeddings_as_numbers_and_as_base64(put: Start) -> None:
    serving = put(tiny=Scripted(dim=8))
    with client_of(serving) as client:
        packed = client.embeddings.create(model="tiny", input=["the fox", "a river"])  # asks for base64, and unpacks
        plain = client.embeddings.create(model="tiny", input=["the fox", "a river"], encoding_format="float")
        short = client.embeddings.create(model="tiny", input="the fox", dimensions=2, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert len(short.data[0].embedding) == 2
    assert packed.usage.prompt_tokens == len("the fox") + len("a river")  # tokens of a script are bytes
    raw = serving.http.post("/v1/embeddings", json={"model": "tiny", "input": "a", "encoding_format": "base64"}).json()
    assert len(struct.unpack("<8f", base64.b64decode(raw["data"][0]["embedding"]))) == 8


def test_models(put: Start) -> None:
    with client_of(put(one=Scripted(), two=Scripted())) as client:
        assert [model.id for model in client.models.list()] == ["one", "two"]
        found = client.models.retrieve("two")
        assert found.object == "model"
        assert found.model_extra is not None
        assert found.model_extra["capabilities"] == ["chat", "complete", "embed", "score", "tokenize"]
        with pytest.raises(openai.NotFoundError, match="three"):
            client.models.retrieve("three")


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("`top_p` is odd."), openai.BadRequestError),
        (Busy("Full.", retry_after=2.0), openai.RateLimitError),
        (Overdue("Late."), openai.InternalServerError),
        (RemoteError("Gone."), openai.InternalServerError),
        (ZeroDivisionError("secret"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(
    put: Start, error: Exception, kind: type[openai.APIStatusError], stream: bool
) -> None:
    with client_of(put(tiny=Scripted(error))) as client, pytest.raises(kind) as raised:
        client.chat.completions.create(model="tiny", messages=ASK, stream=stream)
    statuses = {InputError: 400, Busy: 429, Overdue: 504, RemoteError: 502, ZeroDivisionError: 500}
    assert raised.value.status_code == statuses[type(error)]
    assert "secret" not in str(raised.value)
    assert raised.value.request_id
    if isinstance(error, InputError):
        assert raised.value.param == "top_p"
    if isinstance(error, Busy):
        assert raised.value.response.headers["retry-after"] == "2"


def test_an_error_in_the_middle_of_a_stream_is_raised(put: Start) -> None:
    with client_of(put(tiny=Scripted(["A", RemoteError("Gone.")]))) as client:
        stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
        with pytest.raises(openai.APIError, match="Gone"):
            list(stream)


def test_unknown_names_and_parameters(put: Start) -> None:
    with client_of(put(tiny=Scripted())) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="tinny", messages=ASK)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert "tiny" in str(missing.value)
        for field in ({"top_q": 1}, {"temperature": "warm"}, {"messages": []}, {"tool_choice": "required"}):
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(model="tiny", messages=ASK, extra_body=field)
            assert refused.value.param == next(iter(field))
        with pytest.raises(openai.NotFoundError):
            client.audio.speech.create(model="tiny", voice="alloy", input="A")


def test_the_client_and_the_server_end_what_takes_too_long(start: Start) -> None:
    serving = start(Settings(port=0), tiny=Scripted(["A"] * 50, ["A"] * 50, pace=0.1))
    with client_of(serving, timeout=httpx.Timeout(5, read=0.3)) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="tiny", messages=ASK)
    script = serving.server.models.find("tiny").endpoint
    assert isinstance(script, Scripted)
    until = time.monotonic() + 5
    while script.calls[0].ended is None and time.monotonic() < until:
        time.sleep(0.01)
    assert script.calls[0].ended == "closed"  # the caller has gone: the work ends


def test_raw_replies_have_a_request_id_and_work_is_cancelled_by_it(put: Start) -> None:
    serving = put(tiny=Scripted("A", ["A"] * 100, pace=0.05))
    with client_of(serving) as client:
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=ASK)
        assert raw.headers["x-request-id"].startswith("req-")
        assert raw.parse().choices[0].message.content == "A"
        with client.chat.completions.with_streaming_response.create(
            model="tiny", messages=ASK, stream=True, extra_headers={"x-request-id": "mine"}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            assert reply.headers["x-request-id"] == "mine"
            assert [one["id"] for one in serving.http.get("/v1/requests").json()["data"]] == ["mine"]
            assert serving.http.post("/v1/requests/mine/cancel").json() == {"id": "mine", "stopped": True}
            last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"
    assert serving.http.post("/v1/requests/mine/cancel").status_code == 404


# -- buffering --------------------------------------------------------------------------------------------------------

STORY = "The fox crossed. Nobody saw it! Did you?\nNo: it was night… and 3.5 stars.  "


@pytest.mark.parametrize(
    ("unit", "first"), [("token", "T"), ("word", "The "), ("sentence", "The fox crossed. ")]
)  # fmt: skip
def test_buffering_changes_where_a_stream_is_cut_and_nothing_else(put: Start, unit: str, first: str) -> None:
    script = Scripted(list(STORY), list(STORY))
    with client_of(put(tiny=script)) as client:
        asked: dict[str, Any] = {"model": "tiny", "stream": True, "extra_body": {"buffer": unit}}
        chat = [chunk.choices[0] for chunk in client.chat.completions.create(messages=ASK, **asked)]
        plain = [chunk.choices[0] for chunk in client.completions.create(prompt="A", **asked)]
    assert "".join(one.delta.content or "" for one in chat) == STORY
    assert "".join(one.text for one in plain) == STORY
    assert chat[0].delta.content == plain[0].text == first
    assert [one.finish_reason for one in chat][-1] == "stop"
    counts = {"token": len(STORY), "word": len(STORY.split()), "sentence": 4}
    assert counts[unit] <= len([one for one in chat if one.delta.content]) <= counts[unit] + 2
