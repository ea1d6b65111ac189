"""Requests with one thing wrong, anywhere in them: refused with the name of what is wrong, and nothing ever fails."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook.chat.scripted import Scripted
from openbook.serve.app import ROUTES
from tests.serve.conftest import Serving, serving_of

pytestmark = pytest.mark.slow  # each by itself is quick; together they are not

TYPES = {route.path: route.request for route in ROUTES if route.request is not None}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "How is it there?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
            {"role": "user", "content": "And now?", "name": "Ann"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9,
        "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.5}, "stop": ["a", "b"], "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}},
        "metadata": {"a": "b"}, "user": "me", "n": 2,
    },
    "/v1/completions": {
        "model": "tiny", "prompt": [[1, 2], [3]], "echo": True, "logprobs": 1, "max_tokens": 3, "stop": "x", "n": 1,
        "structured_outputs": {"choice": ["yes", "no"]}, "stream": True, "buffer": "word", "priority": 3,
        "stop_token_ids": [4],
    },
    "/v1/embeddings": {"model": "tiny", "input": ["a", "b"], "encoding_format": "float", "dimensions": 4},
    "/tokenize": {"model": "tiny", "prompt": "abc"},
    "/detokenize": {"model": "tiny", "tokens": [97, 98]},
}  # fmt: skip
WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(),
    st.sampled_from([-1, 1 << 40, 10**30, 0.5, -1e300, 1e300, [], {}, "", "\x00"]),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=20),
)  # fmt: skip


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a request."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, Any, str]:
    """A route, a request of it with one thing changed, and the parameter in which that is."""
    route = draw(st.sampled_from(sorted(VALID)))
    request = copy.deepcopy(VALID[route])
    path = draw(st.sampled_from(list(places(request))))
    holder: Any = request
    for key in path[:-1]:
        holder = holder[key]
    how = draw(st.sampled_from(["other", "other", "other", "gone", "more"]))
    if how == "gone":
        del holder[path[-1]]
    elif how == "more" and isinstance(holder, dict):
        path = (*path[:-1], draw(st.sampled_from(["colour", "Model", "max_token", "temperature "])))
        holder[path[-1]] = draw(WRONG)
    else:
        holder[path[-1]] = draw(WRONG)
    return route, request, str(path[0])


def fits(route: str, request: Any) -> bool:
    """Whether the types allow it."""
    try:
        msgspec.convert(request, TYPES[route])
    except msgspec.ValidationError:
        return False
    return True


@pytest.fixture(scope="module")
def scripted() -> Iterator[Serving]:
    with serving_of({"tiny": Scripted("Hello.", forever=True)}) as made:
        yield made


def check(serving: Serving, route: str, request: Any, parameter: str) -> None:
    """Refused by name, where the types do not allow it; never a failure."""
    reply = serving.http.post(route, content=json.dumps(request), headers={"content-type": "application/json"})
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"]
        assert error["param"], error
        assert reply.status_code == 404 or not fits(route, request) or error["code"] != "invalid_value"
    if not fits(route, request):
        assert reply.status_code == 400 or whole_floats(request), reply.text
        if reply.status_code == 400:
            assert re.split(r"[.\[]", reply.json()["error"]["param"])[0] == parameter


def whole_floats(value: Any) -> bool:
    """Whether an integer may have been written as 1.0, which the types alone do not take."""
    return ".0" in json.dumps(value) or "e+" in json.dumps(value)


@given(case=changed())
@settings(max_examples=200)
def test_one_thing_wrong(scripted: Serving, case: tuple[str, Any, str]) -> None:
    check(scripted, *case)


@pytest.mark.soak
@given(case=changed())
@settings(max_examples=10_000)
def test_one_thing_wrong_often(scripted: Serving, case: tuple[str, Any, str]) -> None:
    check(scripted, *case)


@pytest.mark.soak
@given(case=changed())
@settings(max_examples=2_000)
def test_one_thing_wrong_before_a_model(real: Serving, case: tuple[str, Any, str]) -> None:
    check(real, *case)


@pytest.mark.parametrize("route", sorted(VALID))
def test_nothing_wrong(scripted: Serving, route: str) -> None:
    reply = scripted.http.post(route, json=VALID[route])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model": "tiny", "prompt": "\xff"}', "invalid_json"),  # not UTF-8
        (b'{"model": "tiny", "prompt": "\xed\xa0\x80"}', "invalid_json"),  # a surrogate as bytes
        (b'{"model": "tiny", "prompt": "\\ud800"}', "invalid_json"),  # and as an escape, alone
        (b'\xef\xbb\xbf{"model": "tiny", "prompt": "a"}', "invalid_json"),  # a byte order mark
        (b'{"model": "tiny", "prompt": "a", "seed": NaN}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": Infinity}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": 1e400}', "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_value"),
        (b'{"model": "tiny", "prompt": "a"} {}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "a",}', "invalid_json"),
        (b"{'model': 'tiny'}", "invalid_json"),
        (b'{"model": "tiny", "prompt": ' + b"[" * 200_000, "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "metadata": ' + b'{"a":' * 100_000, "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "structured_outputs": {"json": ' + b'{"a":' * 100_000, "invalid_json"),
        (b"\x00", "invalid_json"),
        (b"", "invalid_value"),
        (b"null", "invalid_value"),
    ],
)
def test_what_is_no_json(scripted: Serving, body: bytes, code: str) -> None:
    reply = scripted.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code), reply.text


def test_json_is_read_as_it_is_written(scripted: Serving) -> None:
    for body in (
        b' {"model": "other", "model": "tiny", "prompt": "a"} ',  # the last of a key counts
        b'{"model": "tiny", "prompt": "a", "max_tokens": 5.0, "seed": 1e3}',  # integers however they are written
        b'{"model": "tiny", "prompt": "\\u0000 \\ud83e\\udd8a"}',
    ):
        reply = scripted.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 200, reply.text
    half = scripted.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 5.5})
    assert half.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415),
        ("", 415), ("application/json; charset=utf-8", 200), ("Application/JSON", 200),
    ],
)  # fmt: skip
def test_types_of_content(scripted: Serving, kind: str, status: int) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a"})
    assert scripted.http.post("/v1/completions", content=body, headers={"content-type": kind}).status_code == status


def test_methods_and_places(scripted: Serving) -> None:
    http = scripted.http
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "HEAD"):
        reply = http.request(method, "/v1/completions")
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert http.request("POST", "/v1/models").headers["allow"] == "GET, HEAD"
    assert (http.head("/v1/models").status_code, http.head("/v1/models").content) == (200, b"")
    unknown = http.get("/v1/models?verbose=1")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "verbose")
    for name in ("a%2Fb", "a/b", "%00", "%FF%FE", "..%2f..%2fetc", "a" * 5000, "%E2%98%83", "tiny%20"):
        assert http.get(f"/v1/models/{name}").json()["error"]["code"] == "model_not_found"
    for path in ("/v1/models/../models", "//v1/models", "/v1//models", "/V1/models", "/v1/completions/", "/.."):
        assert http.get(path).status_code in (404, 200)
    assert http.get("/v1/completions/").status_code == 404
