"""What Prometheus is told, what the dashboard asks for, and spans."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from prometheus_client.parser import text_string_to_metric_families

from openbook.chat import Delta, Scripted, Usage
from openbook.errors import Busy
from openbook.serve.route import Call
from openbook.serve.served import Served
from openbook.serve.server import Server
from tests.serve.conftest import Serving, Start

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
ROOT = Path(__file__).parents[2]
USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)


def numbers(serving: Serving) -> dict[str, dict[tuple[str, ...], float]]:
    """name → values of its labels in the order of their names → the number."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(serving.http.get("/metrics").text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_what_is_counted(start: Start) -> None:
    answer = [Delta(text="He"), Delta(text="llo"), Delta(finish="stop", usage=USAGE)]
    serving = start(tiny=Scripted(answer, answer, Busy("full", 3.0), RuntimeError("broken")))
    for more in ({}, {"stream": True}, {}, {}, {"temperature": 9}, {"model": "x"}):
        serving.http.post("/v1/chat/completions", json=CHAT | more)
    serving.http.get("/nowhere")
    found = numbers(serving)
    route = "/v1/chat/completions"
    requests = found["openbook_requests_total"]
    assert requests["tiny", route, "200"] == 2
    assert requests["tiny", route, "429"] == 1
    assert requests["tiny", route, "500"] == 1
    assert requests["", route, "400"] == 1
    assert requests["", route, "404"] == 1
    assert requests["", "*", "404"] == 1
    assert found["openbook_tokens_total"] == {
        ("prompt", "tiny"): 14, ("cached", "tiny"): 6, ("completion", "tiny"): 4,
    }  # fmt: skip
    assert found["openbook_rejects_total"] == {
        ("rate_limit_exceeded", "429"): 1, ("failed", "500"): 1, ("invalid_value", "400"): 1,
        ("model_not_found", "404"): 1, ("not_found", "404"): 1,
    }  # fmt: skip
    assert found["openbook_time_to_first_token_seconds_count"]["tiny",] == 2
    assert found["openbook_inter_token_seconds_count"]["tiny",] == 4
    assert found["openbook_request_seconds_count"]["tiny", route] == 4
    assert found["openbook_requests_at_work"] == {(): 0}
    assert found["openbook_ready"] == {(): 1}


def test_an_engine_says_how_it_stands(real: Serving) -> None:
    before = numbers(real)
    reply = real.http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 5, "ignore_eos": True}).json()
    found = numbers(real)

    def grown(name: str, *labels: str) -> float:
        return found[name][labels] - before.get(name, {}).get(labels, 0.0)

    assert grown("openbook_queue_seconds_count", "tiny") == 1
    assert grown("openbook_queue_seconds_bucket", "+Inf", "tiny") == 1
    assert grown("openbook_tokens_total", "completion", "tiny") == 5 == reply["usage"]["completion_tokens"]
    assert grown("openbook_engine_steps_total", "tiny") >= 5
    assert found["openbook_engine_running"] == {("tiny",): 0}
    assert found["openbook_engine_memory_bytes"]["tiny",] > found["openbook_engine_memory_used_bytes"]["tiny",]


def test_labels_are_never_the_callers_words(start: Start) -> None:
    """Whatever is asked for, the page stays as small as it is."""
    serving = start(tiny=Scripted(*["Hello."] * 40))

    def strange(word: str) -> None:
        http = serving.http
        http.post("/v1/chat/completions", json=CHAT | {"model": word, "user": word}, headers={"x-request-id": word})
        http.post("/v1/chat/completions", json=CHAT | {word: 1, "priority": 3})
        http.post("/v1/chat/completions", json=CHAT | {"user": word}, headers={"Authorization": f"Bearer {word}"})
        http.post(f"/v1/{word}", json={})
        http.request(word.upper(), "/v1/models")
        http.get(f"/v1/models/{word}")
        http.post(f"/v1/requests/{word}/cancel")
        http.get("/v1/models", headers={"Host": word})

    strange("once")
    serving.http.get("/metrics")  # which counts itself
    before = serving.http.get("/metrics").text
    for word in ("alpha", "beta", "gamma"):
        strange(word)
    after = serving.http.get("/metrics").text
    assert len(after.splitlines()) == len(before.splitlines())
    assert not re.search("once|alpha|beta|gamma", after)


def test_the_dashboard_asks_for_what_there_is(real: Serving) -> None:
    """Every metric of docs/grafana.json stands on the page of a server that has worked a little."""
    real.http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 3})
    real.http.post("/v1/chat/completions", json=CHAT | {"model": "x"})
    page = real.http.get("/metrics").text
    asked = set(re.findall(r"openbook_\w+", (ROOT / "docs" / "grafana.json").read_text(encoding="utf-8")))
    there = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    there |= set(re.findall(r"# TYPE (openbook_\w+)", page))  # nothing was stopped yet
    assert asked
    assert asked - there == set()
    panels = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert "openbook_cancels_total" in asked


def test_a_delta_costs_little() -> None:
    """10,000 streams of two tokens a second are 20,000 deltas a second: what watching costs has to vanish in that."""
    server = Server([Served(name="tiny", endpoint=Scripted())], ())

    async def said(count: int) -> Any:
        for _ in range(count):
            yield Delta(text="a")

    async def spent(watched: bool) -> float:
        call = Call(server=server, id="", caller=server.gate.admit(_headers(), "user"), model="tiny")
        stream = server.metrics.metered(call, said(20_000)) if watched else said(20_000)
        began = time.process_time()
        async for _ in stream:
            pass
        return time.process_time() - began

    plain = min(asyncio.run(spent(False)) for _ in range(3))
    watched = min(asyncio.run(spent(True)) for _ in range(3))
    assert watched - plain < 0.4  # that is 20 µs each; measured: one


def _headers() -> Any:
    from starlette.datastructures import Headers

    return Headers({"host": "localhost"})


# ------------------------------------------------------------------------------------------------ spans


def test_a_span_for_every_request(start: Start) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs the extra `otel`")
    from openbook.serve.tracing import Tracing

    exporter = sdk.InMemorySpanExporter()
    serving = start(tiny=Scripted([Delta(text="Hi"), Delta(finish="stop", usage=USAGE)], RuntimeError("broken")))
    serving.server.tracing = Tracing(exporter)
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    said = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "mine-1"}
    serving.http.post("/v1/chat/completions", json=CHAT, headers=said)
    serving.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "nonsense"})
    serving.http.get("/health/live")
    serving.server.tracing.close()
    good, bad, *_ = exporter.get_finished_spans()
    assert good.name == "POST /v1/chat/completions"
    assert f"{good.context.trace_id:032x}" == trace
    assert f"{good.parent.span_id:016x}" == parent
    assert good.attributes["http.response.status_code"] == 200
    assert good.attributes["openbook.request.id"] == "mine-1"
    assert good.attributes["gen_ai.response.model"] == "tiny"
    assert good.attributes["gen_ai.usage.input_tokens"] == 7
    assert good.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert good.attributes["openbook.time_to_first_token"] > 0
    assert good.resource.attributes["service.name"] == "openbook"
    assert "Hi" not in str(dict(good.attributes))
    assert bad.parent is None
    assert not bad.status.is_ok


def test_nothing_is_traced_unless_asked_for(start: Start) -> None:
    assert start(tiny=Scripted()).server.tracing is None
