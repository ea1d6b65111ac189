"""A parameter is honoured or it stands in the list of those without effect: every field of every request that works.

For each field a value is sent, and must change what reaches the endpoint (or the reply), compared with the same
request without it. A field that is accepted and ignored fails; a field without a value here fails too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from starlette.testclient import TestClient

from openbook.chat import Delta, Logprob, Scripted, Usage
from openbook.generate.sampling import Sampling
from openbook.serve import asking
from openbook.serve.app import ROUTES, make_app
from openbook.serve.routes.scores import SAFE
from openbook.serve.served import Served
from openbook.serve.settings import Settings
from openbook.serve.wire.basics import NO_OPS, StreamOptions
from openbook.serve.wire.chat import ChatRequest

USER = {"role": "user", "content": "Hello there."}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
FLAT = {"type": "function", "name": "look", "parameters": SCHEMA}

# What a field is tried with: its value, or what it needs beside it and its value (`...`: without that other field).
CHOOSING: dict[str, Any] = {
    "max_tokens": 7, "min_tokens": 2, "n": 2, "temperature": 0.25, "top_p": 0.5, "top_k": 9, "min_p": 0.1,
    "typical_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.5,
    "logit_bias": {"65": 1.5}, "seed": 11, "stop": ["!"], "stop_token_ids": [66], "ignore_eos": True,
    "prompt_logprobs": 1, "response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]},
    "priority": 3, "timeout": 99.0,
}  # fmt: skip
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [USER]},
    "/v1/completions": {"model": "tiny", "prompt": "Hello there."},
    "/v1/responses": {"model": "tiny", "input": "Hello there."},
    "/v1/embeddings": {"model": "tiny", "input": "Hello there."},
    "/v1/rerank": {"model": "tiny", "query": "Hello there.", "documents": ["Hello.", "There."]},
    "/v1/score": {"model": "tiny", "text_1": "Hello there.", "text_2": "Hello."},
    "/v1/moderations": {"model": "tiny", "input": "Hello there."},
    "/tokenize": {"model": "tiny", "prompt": "Hello there."},
    "/detokenize": {"model": "tiny", "tokens": [72]},
}
VALUES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHOOSING
    | {
        "model": "nobody",
        "messages": [USER, {"role": "assistant", "content": "Yes?"}, USER],
        "stream": True,
        "stream_options": ({"stream": True}, {"include_usage": True}),
        "buffer": ({"stream": True}, "sentence"),
        "max_completion_tokens": 8,
        "logprobs": True,
        "top_logprobs": ({"logprobs": True}, 1),
        "tools": [TOOL],
        "tool_choice": ({"tools": [TOOL]}, "required"),
        "parallel_tool_calls": ({"tools": [TOOL]}, False),
        "chat_template_kwargs": {"enable_thinking": False},
        "truncate": "oldest",
    },
    "/v1/completions": CHOOSING
    | {
        "model": "nobody",
        "prompt": ["Hello", "there"],
        "stream": True,
        "stream_options": ({"stream": True}, {"include_usage": True}),
        "buffer": ({"stream": True}, "sentence"),
        "echo": True,
        "logprobs": 1,
        "best_of": 2,
    },
    "/v1/responses": {
        "model": "nobody",
        "input": [USER, {"role": "assistant", "content": "Yes?"}, USER],
        "instructions": "Be brief.",
        "previous_response_id": "resp_0",
        "store": True,
        "stream": True,
        "max_output_tokens": 7,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_logprobs": ({"include": ["message.output_text.logprobs"]}, 1),
        "include": ["message.output_text.logprobs"],
        "tools": [FLAT],
        "tool_choice": ({"tools": [FLAT]}, "required"),
        "parallel_tool_calls": ({"tools": [FLAT]}, False),
        "text": {"format": {"type": "json_object"}},
        "truncation": "auto",
        "metadata": {"a": "b"},
        "background": True,
        "top_k": 9,
        "min_p": 0.1,
        "seed": 11,
        "stop": "!",
        "chat_template_kwargs": {"enable_thinking": False},
        "priority": 3,
        "timeout": 99.0,
        "buffer": ({"stream": True}, "sentence"),
        "stream_options": ({"stream": True}, None),  # of no effect, as all that it holds is
    },
    "/v1/embeddings": {"model": "nobody", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 3},
    "/v1/rerank": {
        "model": "nobody",
        "query": "There.",
        "documents": ["Hello."],
        "top_n": 1,
        "return_documents": True,
    },
    "/v1/score": {"model": "nobody", "text_1": "Other.", "text_2": ["Hello.", "There."]},
    "/v1/moderations": {"model": "nobody", "input": ["a", "b"]},
    "/tokenize": {
        "model": "nobody",
        "prompt": "There.",
        "messages": ({"prompt": ...}, [USER]),
        "add_special_tokens": True,
    },
    "/detokenize": {"model": "nobody", "tokens": [73]},
}
# What a chat takes beside the parameters of the official API.
EXTENSIONS = (
    {one.encode_name for one in msgspec.structs.fields(ChatRequest)}
    - set(CompletionCreateParamsBase.__annotations__)
    - set(NO_OPS)
    - {"stream"}
)
QUIET = {"stream_options": "/v1/responses"}  # of no effect by its own description: padding of events


class Double(Scripted):
    """A script that can be asked for rows of a conversation and for labels as well."""

    labels = ("safe", "toxic")
    activation = "softmax"

    def __init__(self) -> None:
        heard = Logprob(token="H", bytes=b"H", logprob=-1.0)
        one = Logprob(token="A", bytes=b"A", logprob=-0.5)
        deltas = [Delta(heard=(None, heard)), *(Delta(text=text, logprobs=(one,)) for text in "A b. C")]
        deltas.append(Delta(finish="stop", usage=Usage(prompt_tokens=3, completion_tokens=6)))
        super().__init__(*[deltas] * 8, dim=8)

    def prompt_of(self, asked: Any) -> list[int]:
        return [1, *str(asked).encode()]

    def rows(self, texts: Any) -> Any:
        from openbook.chat.rows import Row

        return [Row(tuple(text.encode()), ()) if isinstance(text, str) else text for text in texts]

    async def embed(self, texts: Any) -> list[list[float]]:
        return await super().embed([bytes(one.ids).decode() for one in texts])

    async def classify(self, texts: Any) -> list[list[float]]:
        return [[0.0, float(len(text))] for text in texts]


@pytest.fixture
def outcome() -> Iterator[Callable[[str, dict[str, Any]], tuple[int, Any]]]:
    """What a request comes to: its status, and what reached the endpoint together with the reply."""
    app = make_app([], Settings())

    def ask(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        endpoint = Double()
        app.state.server.models.swap(Served(name="tiny", endpoint=endpoint, context=50))
        reply = client.post(path, json=body)
        text = re.sub(r'"(created|created_at|id|item_id)":("[^"]*"|\d+)', r'"\1":0', reply.text)
        calls = [
            (call.kind, call.messages, call.prompt, repr(call.sampling), call.tools, call.use, call.trim, call.terms,
             dict(call.variables))
            for call in endpoint.calls
        ]  # fmt: skip
        return reply.status_code, (calls, text)

    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield ask


def fields_of(path: str) -> list[str]:
    (route,) = [route for route in ROUTES if route.path == path and route.method == "POST"]
    assert route.request is not None
    return [one.encode_name for one in msgspec.structs.fields(route.request)]


CASES = [(path, name) for path in BASE for name in fields_of(path)]
HONOURED = ("store", "metadata")  # of a response; elsewhere they are of no effect


def idle(path: str, name: str) -> bool:
    """Whether it is said to be of no effect."""
    return name in NO_OPS and not (path == "/v1/responses" and name in HONOURED)


def case_of(path: str, name: str) -> tuple[dict[str, Any], Any]:
    value = VALUES[path][name]
    more, value = value if isinstance(value, tuple) else ({}, value)
    base = BASE[path] | more
    return {key: part for key, part in base.items() if part is not ...}, value


def difference(ask: Callable[[str, dict[str, Any]], tuple[int, Any]], path: str, name: str) -> str:
    """ "honoured", "ignored", or the status of a refusal, which must name the field."""
    base, value = case_of(path, name)
    status, changed = ask(path, base | {name: value})
    if status != 200:
        return str(status) if name in changed[1] else "refused without its name"
    required = name in BASE[path] and name not in base
    return "honoured" if required or changed != ask(path, base)[1] else "ignored"


@pytest.mark.parametrize(("path", "name"), CASES)
def test_every_field_is_honoured_or_listed(outcome: Any, path: str, name: str) -> None:
    if idle(path, name):
        value: Any = {"metadata": {"a": "b"}, "store": True}.get(name, "x")
        assert outcome(path, BASE[path] | {name: value}) == outcome(path, BASE[path])
        return
    if QUIET.get(name) == path:
        return
    refused = {"background": "400", "best_of": "400", "model": "404", "previous_response_id": "404"}
    assert difference(outcome, path, name) == refused.get(name, "honoured")


def test_every_route_that_takes_a_body_is_here() -> None:
    known = set(BASE) | {"/rerank", "/score"}  # other names of the same
    admin = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/models/{model}/swap"}  # have tests of their own
    assert {route.path for route in ROUTES if route.request is not None} - admin == known


def test_options_of_streams_without_effect_say_so() -> None:
    assert {one.name for one in msgspec.structs.fields(StreamOptions)} == {"include_usage", "include_obfuscation"}


@pytest.mark.parametrize("fault", ["top_k", "seed", "min_p"])
def test_a_field_that_is_ignored_is_found(monkeypatch: pytest.MonkeyPatch, outcome: Any, fault: str) -> None:
    """The seeded fault: a field that is read and goes nowhere."""
    real = asking.sampling_of

    def forgetful(asked: Any, defaults: Sampling, room: int | None) -> Sampling:
        return real(msgspec.structs.replace(asked, **{fault: None}), defaults, room)

    monkeypatch.setattr(asking, "sampling_of", forgetful)
    assert difference(outcome, "/v1/chat/completions", fault) == "ignored"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("field", [{"buffer": "word"}, {"stream_options": {"include_obfuscation": False}}])
def test_what_is_about_a_stream_needs_one(outcome: Any, path: str, field: dict[str, Any]) -> None:
    status, (_, text) = outcome(path, BASE[path] | field)
    assert (status, next(iter(field)) in text) == (400, True)
    assert outcome(path, BASE[path] | field | {"stream": True})[0] == 200


def test_the_page_says_what_is_there(project: Path) -> None:
    page = (project / "docs" / "server.md").read_text("utf-8")
    paths = {route.path for route in ROUTES}
    assert {path for path in paths if f"`{path}`" not in page} == set()
    assert {name for name in (*NO_OPS, *EXTENSIONS) if f"`{name}`" not in page} == set()
    unheard = {word for word in SAFE if word not in page.partition("called safe")[2] and word != "safe"}
    assert unheard == set()
