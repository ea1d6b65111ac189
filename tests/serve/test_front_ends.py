"""What front ends send without being told to, and what a user of curl types: all of it works unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from openbook.chat.scripted import Scripted
from tests.serve.conftest import Start

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
SENT: dict[str, dict[str, Any]] = {
    "Open WebUI, a chat": {"stream": True, "messages": ASKED, "stream_options": {"include_usage": True}},
    "Open WebUI, a title": {"messages": ASKED, "stream": False, "max_completion_tokens": 50},
    "LangChain": {"messages": ASKED, "stream": True, "n": 1, "temperature": 0.7, "stop": None, "logprobs": False},
    "LobeChat": {
        "messages": PARTS, "stream": True, "temperature": 0.6, "top_p": 1, "frequency_penalty": 0,
        "presence_penalty": 0,
    },
    "SillyTavern": {
        "messages": [*ASKED, {"role": "assistant", "content": "Hello", "name": "Ann"}, *PARTS], "stream": True,
        "temperature": 1, "max_tokens": 300, "top_p": 1, "logit_bias": {}, "stop": [], "seed": 5,
    },
    "an answer, sent back whole": {
        "messages": [
            *ASKED,
            {
                "role": "assistant", "content": "Hello", "refusal": None, "annotations": [], "audio": None,
                "function_call": None, "tool_calls": None,
            },
            {"role": "user", "content": "And?"},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SENT)
def test_front_ends(start: Start, name: str) -> None:
    serving = start(tiny=Scripted("Hello."))
    (model,) = serving.http.get("/v1/models").json()["data"]
    reply = serving.http.post("/v1/chat/completions", json=SENT[name] | {"model": model["id"]})
    assert reply.status_code == 200, reply.text
    assert "Hello." in reply.text
    kind = "text/event-stream" if SENT[name].get("stream") else "application/json"
    assert reply.headers["content-type"].startswith(kind)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(start: Start) -> None:
    serving = start(tiny=Scripted(["Hel", "lo."], forever=True))

    def curl(*words: str) -> str:
        return subprocess.run(["curl", "-sS", *words], capture_output=True, text=True, check=True, timeout=30).stdout

    body = json.dumps({"model": "tiny", "messages": ASKED})
    typed = "Content-Type: application/json"
    said = json.loads(curl(f"{serving.v1}/chat/completions", "-H", typed, "-d", body))
    assert said["choices"][0]["message"]["content"] == "Hello."
    streamed = body[:-1] + ', "stream": true}'
    lines = curl("-N", f"{serving.v1}/chat/completions", "-H", typed, "-d", streamed).strip().split("\n\n")
    assert len(lines) == 3
    assert lines[-1] == "data: [DONE]"
    untyped = json.loads(curl(f"{serving.v1}/chat/completions", "-d", body))  # curl calls it a form then
    assert "application/json" in untyped["error"]["message"]
