"""A remote endpoint over a real socket, in the dialects of others, and when things go wrong."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, cast

import pytest

from openbook.chat import (
    Answer,
    Chat,
    Complete,
    Delta,
    Embed,
    Message,
    Sampling,
    Score,
    Terms,
    Tokenize,
    Tool,
    ToolCall,
    ToolUse,
    Usage,
    capabilities,
    collect,
    collect_all,
    iterate,
    wait,
)
from openbook.chat.remote import Remote
from openbook.chat.wire import connection
from openbook.chat.wire.reply import EndpointError, Reply
from openbook.errors import Busy, InputError, Overdue, Refusal, RemoteError, TooLong
from openbook.generate.grammars import Choice, Json, Lark, Regex, Schema
from tests.chat.wires import (
    COUNTED,
    END,
    HANG,
    PAUSE,
    STREAM,
    USAGE,
    Bytes,
    Script,
    chunk,
    endpoint,
    reply,
    said,
    stream,
)

HELLO = [Message.user("hello")]
FINE = stream(said("Hi", role="assistant"), said(" you"), said(finish="stop"), COUNTED)
COUNT = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
KEY = "sk-very-secret"


def told(logprob: Any) -> dict[str, Any]:
    """A chunk with one token's log-probability."""
    return {"choices": [{"logprobs": {"content": [logprob]}}]}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BACKOFF", 0.001)
    monkeypatch.setattr(connection, "PATIENCE", 0.1)


def answers(*replies: Bytes | Script, sampling: Sampling = Sampling(), **options: Any) -> list[Answer]:  # noqa: B008
    """What a chat with an endpoint that says this gives."""
    with endpoint(*replies) as there:
        return wait(collect_all(Remote(there.url, "m").chat(HELLO, sampling, **options)))


def asked(sampling: Sampling = Sampling(), **options: Any) -> dict[str, Any]:  # noqa: B008
    """What a chat sends, without what every chat sends."""
    with endpoint(FINE) as there:
        wait(collect(Remote(there.url, "m").chat(HELLO, sampling, **options)))
    body = dict(there.asked[0].body)
    common = {
        "model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 256, "temperature": 1.0,
        "top_p": 1.0, "messages": [{"role": "user", "content": "hello"}],
    }  # fmt: skip
    return {name: value for name, value in body.items() if name not in common or value != common[name]}


def failing(*replies: Bytes | Script, key: str | None = None, **options: Any) -> str:
    """What the error of a chat says."""
    with endpoint(*replies) as there, pytest.raises(options.pop("kind", RemoteError)) as caught:
        wait(collect(Remote(there.url, "m", key, **options).chat(HELLO)))
    assert KEY not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    return str(caught.value)


class TestAnswers:
    def test_deltas_as_they_come(self) -> None:
        with endpoint(FINE) as there:
            deltas = list(iterate(Remote(there.url, "m").chat(HELLO)))
        assert deltas == [Delta(text="Hi"), Delta(text=" you"), Delta(finish="stop", usage=COUNT)]
        assert there.asked[0].path == "/v1/chat/completions"

    def test_choices(self) -> None:
        events = [said("a", index=1), said("b"), said(finish="length", index=1), said("c"), said(finish="stop")]
        first, second = answers(stream(*events, COUNTED), sampling=Sampling(n=2))
        assert (first.text, first.finish, second.text, second.finish) == ("bc", "stop", "a", "length")

    @pytest.mark.parametrize(
        "events",
        [
            [said("Hi"), said(" you", "stop"), COUNTED],
            [said("Hi"), {**said(" you", "stop"), "usage": USAGE}],
            [said("Hi"), {**said(" you"), "usage": None}, {**said(finish="stop"), "usage": USAGE}],
            [{**said("Hi"), "usage": {}}, said(" you", "eos"), {**said(finish="stop"), "usage": USAGE}],
            [{"choices": [{"delta": {"content": "Hi you"}, "finish_reason": "stop"}], "usage": USAGE}],
            [{"choices": [{"delta": None}]}, said("Hi you"), {"choices": [{"finish_reason": "stop"}], "usage": USAGE}],
            [{"id": "x"}, "", said([{"type": "text", "text": "Hi"}, {"type": "image"}]), said(" you", "stop"), COUNTED],  # type: ignore[arg-type]
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("done", [True, False])
    def test_dialects(self, events: Sequence[Any], done: bool) -> None:
        assert answers(stream(*events, done=done)) == [Answer(text="Hi you", finish="stop", usage=COUNT)]

    def test_a_whole_message_where_a_stream_was_asked_for(self) -> None:
        call = {"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}
        message = {"role": "assistant", "content": "x", "tool_calls": [call]}
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
        (answer,) = answers(reply(whole))
        calls = (ToolCall(id="c", name="f", arguments='{"a": 1}'),)
        assert answer == Answer(text="x", tool_calls=calls, finish="tool_calls", usage=COUNT)

    def test_reasoning(self) -> None:
        for name in ("reasoning_content", "reasoning"):
            (answer,) = answers(stream(said(**{name: "hm"}), said(**{name: "m"}), said("so", "stop")))
            assert (answer.reasoning, answer.text) == ("hmm", "so")

    @pytest.mark.parametrize(
        "parts",
        [
            [("a", 0, "f", '{"x"'), (None, 0, None, ":1}"), ("b", 1, "g", "{}")],
            [("a", None, "f", '{"x"'), (None, None, None, ":1}"), ("b", None, "g", "{}")],
            [("a", 0, "f", '{"x"'), ("a", 0, "f", ":1}"), ("b", 0, "g", "{}")],
            [("a", 5, "f", ""), ("", 5, "", '{"x":1}'), ("b", 9, "g", "{}")],
            [("a", 0, None, None), (None, 0, "f", '{"x":1}'), ("b", 0, "g", "{}")],
        ],
    )
    def test_tool_calls(self, parts: Sequence[tuple[Any, ...]]) -> None:
        """By index; without one; the same id and name again and again; all with index 0; with gaps; in small parts."""

        def part(number: Any, index: Any, name: Any, arguments: Any) -> dict[str, Any]:
            whole = {"id": number, "index": index, "function": {"name": name, "arguments": arguments}}
            return {name: value for name, value in whole.items() if value is not None}

        events = [said(tool_calls=[part(*one)]) for one in parts]
        (answer,) = answers(stream(*events, said(finish="tool_calls")))
        assert answer.tool_calls == (
            ToolCall(id="a", name="f", arguments='{"x":1}'), ToolCall(id="b", name="g", arguments="{}"),
        )  # fmt: skip

    def test_tool_calls_that_nothing_counts(self) -> None:
        calls = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g")]
        (answer,) = answers(stream(said(tool_calls=calls), said(finish="tool_calls")))
        assert [(call.name, call.arguments) for call in answer.tool_calls] == [("f", "{}"), ("g", "{}")]

    def test_log_probabilities(self) -> None:
        top = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1, "bytes": None}]
        one = {"token": "�", "logprob": -2.0, "bytes": [0xC3], "top_logprobs": top}
        event = said("x", "stop")
        event["choices"][0]["logprobs"] = {"content": [one]}
        (answer,) = answers(stream(event))
        (logprob,) = answer.logprobs
        assert (logprob.bytes, logprob.logprob) == (b"\xc3", -2.0)
        assert [(other.token, other.bytes, other.logprob) for other in logprob.top] == [
            ("a", b"a", -0.5),
            ("b", b"b", -1),
        ]

    def test_split_anywhere(self) -> None:
        """Characters, escapes and line ends that come apart, on the socket too."""
        data = b"".join(
            b"data: " + json.dumps(e, ensure_ascii=False).encode() + b"\r\n\r\n" for e in (said("é🙂", "stop"),)
        )
        for at in range(0, len(data), 7):
            pieces = [STREAM, chunk(data[:at]) if at else b"", PAUSE, chunk(data[at:] + b"data: [DONE]\r\n\r\n"), END]
            assert answers(pieces)[0].text == "é🙂"

    def test_text_that_is_no_text_is_made_one(self) -> None:
        (answer,) = answers(
            [STREAM, chunk(b'data: {"choices":[{"delta":{"content":"a\\ud800b"}}]}\n\ndata: [DONE]\n\n'), END]
        )
        assert answer.text == "a\ufffdb"
        assert answer.finish is None, "an endpoint that does not say why it ends"


class TestRequests:
    def test_defaults(self) -> None:
        assert asked() == {}

    def test_names(self) -> None:
        sampling = Sampling(
            max_tokens=9, temperature=0.5, top_p=0.9, seed=7, stop=("a", b"b"), presence_penalty=0.1,
            frequency_penalty=0.2, top_k=5, min_p=0.1, typical_p=0.9, repetition_penalty=1.1, min_tokens=2,
            stop_ids=(3,), ignore_eos=True, logit_bias={4: 1.5, 5: -math.inf}, banned=(6,), logprobs=2,
        )  # fmt: skip
        assert asked(sampling, terms=Terms(priority=3), variables={"enable_thinking": False}) == {
            "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["a", "b"], "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1,
            "min_tokens": 2, "stop_token_ids": [3], "ignore_eos": True, "logit_bias": {"4": 1.5, "5": -100, "6": -100},
            "logprobs": True, "top_logprobs": 2, "priority": 3, "chat_template_kwargs": {"enable_thinking": False},
        }  # fmt: skip

    def test_grammars(self) -> None:
        schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
        cases: list[tuple[Any, dict[str, Any]]] = [
            (Json(), {"response_format": {"type": "json_object"}}),
            (Schema('{"type":"object"}'), {"response_format": {"type": "json_schema", "json_schema": schema}}),
            (Regex("a+"), {"structured_outputs": {"regex": "a+"}}),
            (Choice(("a", "b")), {"structured_outputs": {"choice": ["a", "b"]}}),
            (Lark('start: "a"'), {"structured_outputs": {"grammar": 'start: "a"'}}),
        ]
        for grammar, fields in cases:
            assert asked(Sampling(grammar=grammar)) == fields

    def test_tools(self) -> None:
        tool = Tool(name="f", parameters={"type": "object"}, strict=True)
        plain = {"tools": [tool.as_dict()], "tool_choice": "auto"}
        assert asked(tools=[tool]) == plain
        one = {"type": "function", "function": {"name": "f"}}
        use = ToolUse(mode="required", name="f", parallel=False)
        assert asked(tools=[tool], use=use) == {**plain, "tool_choice": one, "parallel_tool_calls": False}
        with pytest.raises(InputError, match="no `tools`"):
            Remote("http://x").chat(HELLO, use=ToolUse(mode="required"))

    def test_tenants_are_hashed(self) -> None:
        (first,), (second,) = (asked(terms=Terms(tenant=name)).values() for name in ("ann", "bob"))
        assert len(first) == len(second) == 32
        assert first != second
        assert "ann" not in first

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(beams=2), Sampling(no_repeat_ngram=2), Sampling(forced=(1,)), Sampling(length_penalty=2.0),
            Sampling(early_stopping=True), Sampling(prompt_logprobs=1), Sampling(stop=(b"\xff",)),
        ],
    )  # fmt: skip
    def test_what_has_no_name_is_refused_at_once(self, sampling: Sampling) -> None:
        with pytest.raises(Refusal):
            Remote("http://x", "m").chat(HELLO, sampling)

    def test_what_is_no_conversation(self) -> None:
        for messages in ([], [{"role": "user"}]):
            with pytest.raises(InputError):
                Remote("http://x", "m").chat(messages)
        with pytest.raises(InputError, match="Unicode"):
            wait(collect(Remote("http://127.0.0.1:9", "m").chat([Message.user("\ud800")])))

    def test_the_only_model_is_found(self) -> None:
        listed = reply({"data": [{"id": "tiny"}]})
        with endpoint(listed, FINE, FINE) as there:
            remote = Remote(there.url, key=KEY)
            wait(collect(remote.chat(HELLO)))
            wait(collect(remote.chat(HELLO)))
        assert [one.path for one in there.asked] == ["/v1/models", "/v1/chat/completions", "/v1/chat/completions"]
        assert {one.headers["authorization"] for one in there.asked} == {f"Bearer {KEY}"}
        assert there.asked[1].body["model"] == "tiny"
        with endpoint(reply({"data": [{"id": "a"}, {"id": "b"}]})) as there, pytest.raises(InputError, match="a, b"):
            wait(collect(Remote(there.url).chat(HELLO)))
        with endpoint(reply(b"", 404)) as there, pytest.raises(InputError, match="say which by `model`"):
            wait(collect(Remote(there.url).chat(HELLO)))

    def test_words_that_an_endpoint_does_not_take(self) -> None:
        """They are asked otherwise, once, and the endpoint is remembered."""
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        renamed = reply({"error": {"message": message, "code": "unsupported_parameter"}}, 400)
        extra = reply({"detail": [{"loc": ["body", "user"], "msg": "Extra inputs are not permitted"}]}, 422)
        with endpoint(renamed, extra, FINE) as there:
            remote = Remote(there.url, "m")
            for _ in range(2):
                wait(collect(remote.chat(HELLO, terms=Terms(tenant="t"))))
        bodies = [one.body for one in there.asked]
        assert len(bodies) == 4
        assert bodies[2] == bodies[3]
        assert bodies[3]["max_completion_tokens"] == 256
        assert not {"max_tokens", "user"} & set(bodies[3])
        too_large = reply({"error": {"message": "max_tokens (or max_completion_tokens) is too large"}}, 400)
        with endpoint(too_large) as there, pytest.raises(InputError, match="too large"):
            wait(collect(Remote(there.url, "m").chat(HELLO)))
        assert len(there.asked) == 1


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "base"),
        [
            ("http://h:1", "http://h:1/v1"), ("http://h/", "http://h/v1"), ("https://h/v1/", "https://h/v1"),
            ("https://h/api/v3", "https://h/api/v3"), ("https://h/v1beta/openai", "https://h/v1beta/openai"),
        ],
    )  # fmt: skip
    def test_bases(self, url: str, base: str) -> None:
        assert Remote(url).url == base

    @pytest.mark.parametrize(
        "url", ["h:1", "ftp://h", "http://", "http://h:x", "http://[", f"http://me:{KEY}@h", "http://h?a=1"]
    )
    def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(InputError) as caught:
            Remote(url)
        assert KEY not in str(caught.value)

    def test_keys(self) -> None:
        for key in ("", f"{KEY}\n", f"{KEY}\r\nX: 1", "é"):
            with pytest.raises(InputError, match="key") as caught:
                Remote("http://h", key=key)
            assert not key or key.strip() not in str(caught.value)
        assert KEY not in repr(Remote("http://h", key=KEY))

    def test_bounds(self) -> None:
        for options in ({"timeout": 0.0}, {"retries": -1}, {"connections": 0}):
            with pytest.raises(InputError):
                Remote("http://h", **options)  # type: ignore[arg-type]


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "body", "kind", "words"),
        [
            (400, {"error": {"message": "Too big", "code": "context_length_exceeded"}}, TooLong, "Too big"),
            (400, {"object": "error", "message": "This model's maximum context length is 8"}, TooLong, "is 8"),
            (400, {"error": {"message": "over", "type": "exceed_context_size_error", "code": 400}}, TooLong, "over"),
            (400, {"error": {"message": "`top_k` is unknown", "param": "top_k"}}, InputError, "`top_k` is unknown"),
            (422, {"detail": [{"msg": "Extra inputs"}]}, InputError, "Extra inputs"),
            (400, b"\x1b[31mplain\n words\xff", InputError, r"says: \[31mplain words"),
            (401, {"error": f"wrong key {KEY}"}, RemoteError, r"wrong key \(the key\).*Look at the key from the `key`"),
            (403, {"error": {"message": "no"}}, RemoteError, "Look at the key"),
            (404, {"detail": "Not Found"}, Refusal, "does not have what was asked for"),
            (405, {"error": "no"}, Refusal, "no"),
            (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, RemoteError, "pay"),
            (500, {"error": {"message": "oh"}}, RemoteError, "oh.*HTTP 500"),
            (502, b"<html>gateway</html>", RemoteError, "gateway"),
            (503, b"", RemoteError, "no reason is given"),
            (307, b"", RemoteError, "moved to http://elsewhere"),
            (418, b"[" * 100_000, RemoteError, "HTTP 418"),
        ],
    )  # fmt: skip
    def test_statuses(self, status: int, body: Any, kind: type[Exception], words: str) -> None:
        with endpoint(reply(body, status, location="http://elsewhere")) as there:
            with pytest.raises(kind, match=words) as caught:
                wait(collect(Remote(there.url, "m", KEY).chat(HELLO)))
            assert type(caught.value) is kind
            assert KEY not in str(caught.value)
            assert len(str(caught.value)) < 1000
            assert len(there.asked) == 1

    def test_without_a_key(self) -> None:
        assert "asked without a key" in failing(reply({"error": "no"}, 401))

    def test_an_unknown_model(self) -> None:
        missing = reply({"error": {"message": "The model `m` does not exist.", "code": "model_not_found"}}, 404)
        assert "It has: a, b" in failing(missing, reply({"data": [{"id": "a"}, {"id": "b"}]}), kind=InputError)

    def test_busy(self) -> None:
        with endpoint(reply({"error": "slow down"}, 429, retry_after="99")) as there, pytest.raises(Busy) as caught:
            wait(collect(Remote(there.url, "m").chat(HELLO)))
        assert caught.value.retry_after == 99.0
        assert len(there.asked) == 1, "it is not waited for that long"

    @pytest.mark.parametrize("said", ["Wed, 21 Oct 2015 07:28:00 GMT", "-1", "0"])
    def test_coming_again(self, said: str) -> None:
        with endpoint(reply({}, 429, retry_after=said), reply({}, 503, retry_after=said), FINE) as there:
            assert wait(collect(Remote(there.url, "m").chat(HELLO))).text == "Hi you"
        with endpoint(reply({}, 429, retry_after=said)) as there, pytest.raises(Busy):
            wait(collect(Remote(there.url, "m", retries=1).chat(HELLO)))
        assert len(there.asked) == 2

    @pytest.mark.parametrize("said", ["nan", "inf", "soon", ""])
    def test_a_time_that_is_none(self, said: str) -> None:
        failing(reply({}, 429, retry_after=said), kind=Busy)

    def test_no_connection(self) -> None:
        with endpoint(FINE) as there:
            pass
        with pytest.raises(RemoteError, match="Is it running"):
            wait(collect(Remote(there.url, "m").chat(HELLO)))

    def test_a_connection_that_is_closed_unanswered_is_tried_again(self) -> None:
        with endpoint([], [], FINE) as there:
            assert wait(collect(Remote(there.url, "m").chat(HELLO))).text == "Hi you"
        assert "broke off" in failing([], retries=1)

    def test_nothing_is_tried_again_after_the_first_byte(self) -> None:
        with endpoint([*FINE[:2], b""]) as there, pytest.raises(RemoteError, match="broke off"):
            wait(collect(Remote(there.url, "m").chat(HELLO)))
        assert len(there.asked) == 1

    @pytest.mark.parametrize(
        ("events", "kind", "words"),
        [
            ([said("a")], RemoteError, "broke off before the answer was done"),
            ([], RemoteError, "broke off"),
            ([said("a"), {"error": {"message": "crashed", "code": 500}}], RemoteError, "crashed"),
            ([{"error": {"message": "long", "code": "context_length_exceeded"}}], TooLong, "long"),
            ([{"object": "error", "message": "bad", "code": 400}], InputError, "bad"),
            ([{"error": {"message": "later", "code": 429}}], Busy, "later"),
            ([{"error": {"message": "bad", "type": "invalid_request_error", "code": None}}], InputError, "bad"),
            (["{nonsense"], RemoteError, "should be JSON"),
            (["[" * 100_000], RemoteError, "should be JSON"),
            (["5"], RemoteError, "an event is 5"),
            ([{"choices": 5}], RemoteError, "`choices` is 5"),
            ([{"choices": [5]}], RemoteError, "a choice is 5"),
            ([{"choices": [{"index": 1_000_000, "delta": {}}]}], RemoteError, "a choice"),
            ([{"choices": [{"delta": {"content": 5}}]}], RemoteError, "a text is 5"),
            ([{"choices": [{"delta": "x"}]}], RemoteError, "a delta is 'x'"),
            ([said(tool_calls="x")], RemoteError, "`tool_calls`"),
            ([said(tool_calls=[5])], RemoteError, "a tool call is 5"),
            ([said(tool_calls=[{"index": "0"}])], RemoteError, "index of a tool call"),
            ([said("a", "abort")], RemoteError, "'abort'"),
            ([told({"token": "a", "logprob": "x"})], RemoteError, "log-probability is 'x'"),
            ([told({"token": "a", "logprob": 0, "bytes": [999]})], RemoteError, "bytes of a token"),
        ],
    )  # fmt: skip
    def test_streams(self, events: Sequence[Any], kind: type[Exception], words: str) -> None:
        with endpoint(stream(*events, done=False)) as there, pytest.raises(kind, match=words):
            wait(collect(Remote(there.url, "m").chat(HELLO)))

    def test_an_endless_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openbook.chat.wire.events.LARGEST", 10_000)
        assert "larger than" in failing([STREAM, *[chunk(b"x" * 1000)] * 20, HANG])

    def test_an_endless_reply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "LARGEST", 10_000)
        with endpoint(reply(b"[" + b"1," * 10_000)) as there, pytest.raises(RemoteError, match="more than 10000 bytes"):
            wait(Remote(there.url, "m").embed(["a"]))

    def test_a_page_for_people(self) -> None:
        assert "its reply is b'<html>" in failing(reply(b"<html>hello</html>", kind="text/html"))

    def test_half_a_header(self) -> None:
        assert "broke off" in failing([b"HTTP/1.1 200 OK\r\nconte", b""], retries=0)
        assert "broke off" in failing([b"SSH-2.0-OpenSSH\r\n\r\n", b""], retries=0)


TOP = [{"token": "a", "logprob": -1.0, "bytes": [97]}]
LOGPROBS = {"content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": TOP}]}
TOLD = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}], "text_offset": [0]}
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SPOKEN = {"content": "a", "reasoning_content": "b", "tool_calls": [CALL]}
EVENTS = [
    {"choices": [{"index": 0, "delta": SPOKEN, "logprobs": LOGPROBS, "finish_reason": "stop"}], "usage": USAGE},
    {"choices": [{"index": 0, "text": "a", "logprobs": TOLD, "finish_reason": "stop"}], "usage": USAGE},
]
WRONG = [None, True, -1, 10**30, 1.5, "", "x", [], [None], ["x"], [[]], {}, {"x": 1}, {"content": None}]


def swapped(value: Any, other: Any) -> Iterator[Any]:
    """`value` with `other` in each of its places."""
    yield other
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        for changed in swapped(part, other):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = changed
            yield copy


def test_whatever_is_said_is_an_answer_or_our_error() -> None:
    """A value of every kind in every place of an event."""
    for event in (changed for whole in EVENTS for wrong in WRONG for changed in swapped(whole, wrong)):
        answer = Reply(1)
        with suppress(RemoteError, EndpointError):
            for delta in answer.take(json.dumps(event)) + answer.take(json.dumps(event)) + answer.take("[DONE]"):
                assert delta.choice == 0
                assert isinstance(delta.text + delta.reasoning, str)


class TestTime:
    def test_terms(self) -> None:
        for pieces in ([HANG], [STREAM, HANG], [*FINE[:2], HANG]):
            with endpoint(pieces) as there, pytest.raises(Overdue):
                wait(collect(Remote(there.url, "m").chat(HELLO, terms=Terms(timeout=0.1))))
            assert there.asked[0].hung_up.wait(5)

    def test_terms_hold_for_all_requests_together(self) -> None:
        """Each of them alone is in time."""
        long = [PAUSE] * 30 + [reply({"error": {"message": "long", "code": "context_length_exceeded"}}, 400)]
        talk = [say("x") for _ in range(20) for say in (Message.user, Message.assistant)]
        with endpoint(long) as there, pytest.raises(Overdue):
            wait(collect(Remote(there.url, "m").chat(talk, trim=True, terms=Terms(timeout=0.15))))

    def test_silence(self) -> None:
        for pieces in ([HANG], [*FINE[:2], HANG]):
            assert "said nothing for 0.1 seconds" in failing(pieces, timeout=0.1)

    def test_waiting_for_a_busy_endpoint_counts(self) -> None:
        with endpoint(reply({}, 429, retry_after="20")) as there, pytest.raises(Overdue):
            wait(collect(Remote(there.url, "m").chat(HELLO, terms=Terms(timeout=0.1))))

    def test_closing_hangs_up(self) -> None:
        with endpoint([*FINE[:2], HANG]) as there:
            deltas = iterate(Remote(there.url, "m").chat(HELLO))
            assert next(deltas).text == "Hi"
            assert not there.asked[0].hung_up.is_set()
            deltas.close()  # type: ignore[attr-defined]
            assert there.asked[0].hung_up.wait(5)

    def test_cancelling_hangs_up(self) -> None:
        async def cancelled(remote: Remote) -> None:
            task = asyncio.ensure_future(collect(remote.chat(HELLO)))
            while not there.asked:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(there.asked[0].hung_up.wait, 5)

        with endpoint([*FINE[:2], HANG]) as there:
            asyncio.run(cancelled(Remote(there.url, "m")))


class TestConnections:
    def test_they_are_used_again(self) -> None:
        """One after another over one connection; at once over several; after `aclose` over a new one."""

        async def talk(remote: Remote) -> None:
            for _ in range(3):
                await collect(remote.chat(HELLO))
            assert {one.connection for one in there.asked} == {1}
            await remote.aclose()
            await asyncio.gather(*(collect(remote.chat(HELLO)) for _ in range(5)))
            assert {one.connection for one in there.asked[3:]} <= set(range(2, 7))

        with endpoint(FINE) as there:
            asyncio.run(talk(Remote(there.url, "m")))

    def test_several_event_loops(self) -> None:
        with endpoint(FINE) as there:
            remote = Remote(there.url, "m")
            loops = [wait(collect(remote.chat(HELLO))).text for _ in range(3)]
            loops += ["".join(delta.text for delta in iterate(remote.chat(HELLO)))]
            assert loops == ["Hi you"] * 4
            assert not remote._wire._clients, "a loop that ended leaves nothing behind"

    def test_a_loop_leaves_nothing_open(self) -> None:
        code = (
            "import gc, sys\nfrom openbook.chat import Message, collect, wait\n"
            "from openbook.chat.remote import Remote\n"
            "remote = Remote(sys.argv[1], 'm')\n"
            "print([wait(collect(remote.chat([Message.user('x')]))).text for _ in range(2)])\ngc.collect()\n"
            "sys.exit('torch' in sys.modules)"
        )
        with endpoint(FINE) as there:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", code, there.url], capture_output=True, text=True, check=False
            )
        assert (done.returncode, done.stdout, done.stderr) == (0, "['Hi you', 'Hi you']\n", "")

    def test_a_full_pool_is_busy(self) -> None:
        async def crowd(remote: Remote) -> None:
            first = cast("AsyncGenerator[Delta]", remote.chat(HELLO))
            async with aclosing(first):
                await anext(first)
                with pytest.raises(Busy, match="All 1 connections"):
                    await collect(remote.chat(HELLO))

        with endpoint([*FINE[:2], HANG]) as there:
            asyncio.run(crowd(Remote(there.url, "m", timeout=0.1, connections=1)))

    def test_this_machine_is_behind_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert answers(FINE)[0].text == "Hi you"


class TestTrim:
    def test_the_oldest_turns_are_left_out(self) -> None:
        long = reply({"error": {"message": "long", "code": "context_length_exceeded"}}, 400)
        talk = [Message.system("s")]
        talk += [say(f"{i}") for i in range(5) for say in (Message.user, Message.assistant)] + [Message.user("last")]
        with endpoint(long, long, long, FINE) as there:
            answer = wait(collect(Remote(there.url, "m").chat(talk, trim=True)))
        assert answer == Answer(text="Hi you", finish="stop", usage=COUNT, dropped=tuple(range(1, 9)))
        said = [[one["content"] for one in request.body["messages"]] for request in there.asked]
        assert [len(one) for one in said] == [12, 10, 8, 4]
        assert said[-1] == ["s", "4", "4", "last"]
        with endpoint(long) as there, pytest.raises(TooLong):
            wait(collect(Remote(there.url, "m").chat(talk, trim=True)))
        assert len(there.asked[-1].body["messages"]) == 2
        with endpoint(FINE) as there:
            assert not wait(collect(Remote(there.url, "m").chat(talk, trim=True))).dropped


def echo(tokens: Sequence[str], logprobs: Sequence[float | None], text: str | None = None, written: int = 0) -> bytes:
    """A prompt that comes back; each token is the best but those with a log-probability below -5."""
    tops = [None if one is None else {"best": -1.0, token: one} for token, one in zip(tokens, logprobs, strict=True)]
    told = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": [0] * len(tokens)}
    choice = {
        "index": 0,
        "text": "".join(tokens) if text is None else text,
        "logprobs": told,
        "finish_reason": "length",
    }
    return reply({"choices": [choice], "usage": {"prompt_tokens": len(tokens), "completion_tokens": written}})


class TestTheRest:
    def test_it_can_all(self) -> None:
        assert capabilities(Remote("http://x")) == ("Chat", "Complete", "Embed", "Score", "Tokenize")
        for protocol in (Chat, Complete, Embed, Score, Tokenize):
            assert isinstance(Remote("http://x"), protocol)

    def test_complete(self) -> None:
        told = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -0.5, "a": -1.0}], "text_offset": [0]}
        events = [
            {"choices": [{"index": 0, "text": "a", "logprobs": told}]},
            {"choices": [{"text": "", "finish_reason": "stop"}]},
        ]
        with endpoint(stream(*events, COUNTED)) as there:
            answer = wait(collect(Remote(there.url, "m").complete([1, 2], Sampling(logprobs=1, max_tokens=1))))
        assert (answer.text, answer.finish, answer.usage) == ("a", "stop", COUNT)
        assert [(one.token, [top.token for top in one.top]) for one in answer.logprobs] == [("a", ["b"])]
        assert there.asked[0].path == "/v1/completions"
        assert (there.asked[0].body["prompt"], there.asked[0].body["logprobs"]) == ([1, 2], 1)

    def test_tokens_that_are_parts_of_characters_are_told_by_their_bytes(self) -> None:
        names = ["bytes:\\xc3", "bytes:\\xa9", "bytes:", "é"]
        told = {"tokens": names, "token_logprobs": [-1.0] * 4, "top_logprobs": None, "text_offset": [0] * 4}
        events = [{"choices": [{"index": 0, "text": "ébytes:é", "logprobs": told, "finish_reason": "stop"}]}]
        with endpoint(stream(*events, COUNTED)) as there:
            answer = wait(collect(Remote(there.url, "m").complete("a", Sampling(logprobs=0, max_tokens=4))))
        assert b"".join(one.bytes for one in answer.logprobs).decode() == answer.text
        assert [one.token for one in answer.logprobs] == ["\ufffd", "\ufffd", "bytes:", "é"]

    def test_the_tokens_of_a_prompt(self) -> None:
        events = stream({"choices": [{"index": 0, "text": "!", "finish_reason": "stop"}]}, COUNTED)
        with endpoint(echo(["a", "b"], [None, -2.0]), events) as there:
            deltas = list(iterate(Remote(there.url, "m").complete("ab", Sampling(prompt_logprobs=1))))
        first, second = deltas[0].heard
        assert first is None
        assert second is not None
        assert (second.token, second.logprob, second.top[0].token) == ("b", -2.0, "best")
        assert "".join(delta.text for delta in deltas) == "!"
        body = there.asked[0].body
        assert (body["echo"], body["max_tokens"], body["logprobs"]) == (True, 0, 1)

    def test_embed(self) -> None:
        data = [{"index": 1, "embedding": [0.0, 2]}, {"index": 0, "embedding": [0.6, 0.8]}]
        with endpoint(reply({"data": data})) as there:
            assert wait(Remote(there.url, "m").embed(["a", "b"])) == [[0.6, 0.8], [0.0, 1.0]]
            assert wait(Remote(there.url, "m").embed([])) == []
        assert there.asked[0].body == {"model": "m", "input": ["a", "b"]}

    def test_many_texts_are_several_requests(self) -> None:
        def answer(one: Any) -> bytes:
            return reply({"data": [{"index": i, "embedding": [float(t)]} for i, t in enumerate(one.body["input"])]})

        with endpoint(answer) as there:
            assert wait(Remote(there.url, "m").embed(["1"] * 300)) == [[1.0]] * 300
        assert sorted(len(one.body["input"]) for one in there.asked) == [44, 128, 128]

    @pytest.mark.parametrize(
        "data",
        [
            None, [], [5], [{"embedding": []}], [{"embedding": "AAAA"}], [{"embedding": [None]}],
            [{"embedding": [1.0], "index": 1}], [{"embedding": [1.0], "index": []}], [{"embedding": [math.nan]}],
        ],
    )  # fmt: skip
    def test_what_is_no_vector(self, data: Any) -> None:
        with endpoint(reply({"data": data})) as there, pytest.raises(RemoteError, match="OpenAI API"):
            wait(Remote(there.url, "m").embed(["a"]))

    def test_tokens(self) -> None:
        with endpoint(reply({"tokens": [1, 2]}), reply({"prompt": "ab"})) as there:
            remote = Remote(f"{there.url}/v1", "m")
            assert wait(remote.tokenize("ab")) == [1, 2]
            assert wait(remote.detokenize([1, 2])) == "ab"
        assert [(one.path, one.body) for one in there.asked] == [
            ("/tokenize", {"model": "m", "prompt": "ab", "add_special_tokens": False}),
            ("/detokenize", {"model": "m", "tokens": [1, 2]}),
        ]
        with endpoint(reply({"tokens": []}), reply({"tokens": [1]}), reply({"content": "é"})) as there:
            remote = Remote(there.url, "m")
            assert wait(remote.tokenize("a")) == [1]
            assert wait(remote.detokenize([1])) == "é"
        for wrong in ({"tokens": ["a"]}, {"tokens": []}, {}, []):
            with endpoint(reply(wrong)) as there, pytest.raises(RemoteError):
                wait(Remote(there.url, "m").tokenize("a"))


class TestScores:
    def test_from_the_first_token_that_differs(self) -> None:
        """The context is read alone too: its last token may be a longer one with what follows."""
        whole = {
            "the ca": echo(["the", " ca"], [None, -3.0]),
            "the cat sat": echo(["the", " cat", " sat"], [None, -1.0, -6.0]),
            "the ca n": echo(["the", " ca", " n"], [None, -1.0, -1.0]),
        }
        with endpoint(lambda one: whole[one.body["prompt"]]) as there:
            first, second = wait(Remote(there.url, "m").score([("the ca", "t sat"), ("the ca", " n")]))
        assert (first.logprob, first.tokens, first.greedy) == (-7.0, 2, False)
        assert (second.logprob, second.tokens, second.greedy) == (-1.0, 1, True)
        assert len(there.asked) == 3, "each context once"

    def test_without_a_context(self) -> None:
        with endpoint(echo(["<s>", "a"], [None, -1.0], "a")) as there:
            assert wait(Remote(there.url, "m").score([("", "a")]))[0].tokens == 1
        with endpoint(echo(["a"], [-1.0])) as there:
            assert wait(Remote(there.url, "m").score([("", "a")]))[0].tokens == 1
        with endpoint(echo(["a"], [None])) as there, pytest.raises(InputError, match="begin token"):
            wait(Remote(there.url, "m").score([("", "a")]))
        with pytest.raises(InputError, match="a continuation"):
            wait(Remote("http://x", "m").score([("a", "")]))
        assert wait(Remote("http://x", "m").score([])) == []

    def test_where_something_must_be_written(self) -> None:
        refused = reply({"error": {"message": "max_tokens must be at least 1"}}, 400)

        def answer(one: Any) -> bytes:
            tokens = [*one.body["prompt"], "?"]
            numbers: list[float | None] = [None, *[-1.0] * (len(tokens) - 1)]
            return refused if one.body["max_tokens"] < 1 else echo(tokens, numbers, written=1)

        with endpoint(answer) as there:
            scores = wait(Remote(there.url, "m").score([("ab", "c"), ("ab", "de")]))
        assert [(one.logprob, one.tokens) for one in scores] == [(-1.0, 1), (-2.0, 2)]

    def test_where_neither_is_taken(self) -> None:
        with endpoint(reply({"error": {"message": "max_tokens is odd"}}, 400)) as there, pytest.raises(InputError):
            wait(Remote(there.url, "m").score([("a", "b")]))
        assert {one.body["max_tokens"] for one in there.asked} == {0, 1}

    @pytest.mark.parametrize("logprobs", [None, {"content": []}, {"tokens": ["x"], "token_logprobs": [-1.0]}])
    def test_where_nothing_is_echoed(self, logprobs: Any) -> None:
        body = {"choices": [{"text": "x", "logprobs": logprobs}], "usage": {"completion_tokens": 0}}
        with endpoint(reply(body)) as there:
            for work in (Remote(there.url, "m").score([("a", "b")]), _first(Remote(there.url, "m"))):
                with pytest.raises(Refusal, match="does not give the prompt back"):
                    wait(work)


async def _first(remote: Remote) -> Delta:
    return await anext(aiter(remote.complete([1, 2, 3], Sampling(prompt_logprobs=0))))
