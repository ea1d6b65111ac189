"""What a server tells Prometheus: counters and histograms of requests, and what its engines say of themselves."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from openbook.chat import Delta, Usage

if TYPE_CHECKING:
    from openbook.serve.route import Call, Route
    from openbook.serve.server import Server

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@runtime_checkable
class Gauges(Protocol):
    """Knows numbers about itself."""

    def gauges(self) -> Mapping[str, float]:
        """Numbers as they stand, by name."""
        ...


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, server: Server) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("openbook_requests", "Requests answered", ["route", "model", "status"], registry=r)
        self.seconds = Histogram(
            "openbook_request_seconds", "From a request's head to its reply's end", ["route", "model"],
            buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.first = Histogram(
            "openbook_time_to_first_token_seconds", "From a request to the first of its answer", ["model"],
            buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.between = Histogram(
            "openbook_inter_token_seconds", "Between two deltas of an answer", ["model"], buckets=BETWEEN, registry=r
        )
        self.tokens = Counter(
            "openbook_tokens", "Tokens read, found in a cache, written", ["model", "kind"], registry=r
        )
        self.rejects = Counter("openbook_rejects", "Requests that were refused", ["status", "code"], registry=r)
        self.cancels = Counter("openbook_cancels", "Requests that were stopped", ["reason"], registry=r)
        r.register(_Standing(server))

    def answered(self, route: Route, call: Call | None, status: int, seconds: float) -> None:
        """A request came to its end."""
        model = "" if call is None else call.model
        self.requests.labels(route.path, model, str(status)).inc()
        if route.works:
            self.seconds.labels(route.path, model).observe(seconds)
        running = None if call is None else call.running
        if running is not None and running.stopped is not None:
            self.cancels.labels(running.stopped).inc()

    async def metered(self, call: Call, stream: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        """The deltas of an answer, watched by the clock; what it used is counted."""
        last, first = time.monotonic(), True
        between, times = self.between.labels(call.model), self.first.labels(call.model)
        async with aclosing(stream) as deltas:  # type: ignore[type-var]  # all of ours are generators
            async for delta in deltas:
                now = time.monotonic()
                (times if first else between).observe(now - last)
                last, first = now, False
                if call.running is not None:
                    call.running.tokens += 1
                if delta.usage is not None:
                    self.used(call, delta.usage)
                yield delta

    def used(self, call: Call, usage: Usage) -> None:
        """What a request read and wrote."""
        self.tokens.labels(call.model, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(call.model, "cached").inc(usage.cached_tokens)
        self.tokens.labels(call.model, "completion").inc(usage.completion_tokens)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Standing(Collector):
    """What stands now: asked when it is read, never kept."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        """Requests at work, and the gauges of every endpoint that has some."""
        yield GaugeMetricFamily("openbook_requests_at_work", "Requests at work", value=len(self._server.board))
        families: dict[str, GaugeMetricFamily] = {}
        for name, served in self._server.models.all.items():
            if not isinstance(served.endpoint, Gauges):
                continue
            for key, value in served.endpoint.gauges().items():
                if key not in families:
                    families[key] = GaugeMetricFamily(f"openbook_engine_{key}", key.replace("_", " "), labels=["model"])
                families[key].add_metric([name], value)
        yield from families.values()
