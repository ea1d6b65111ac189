"""What a server tells Prometheus: counters and histograms of requests, and what its engines say of themselves."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from openbook.chat import Delta, Usage
from openbook.serve.errors import Rejected

if TYPE_CHECKING:
    from openbook.serve.route import Call, Route
    from openbook.serve.server import Server

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
GROWING = {  # numbers of an engine that only grow
    "prompt_tokens", "output_tokens", "prefix_hit_tokens", "preemptions", "steps", "failures", "seconds_in_model",
}  # fmt: skip
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@runtime_checkable
class Gauges(Protocol):
    """Knows numbers about itself."""

    def gauges(self) -> Mapping[str, float]:
        """Numbers as they stand, by name."""
        ...


@runtime_checkable
class Queued(Protocol):
    """Knows how long its requests wait."""

    def waits(self) -> tuple[list[tuple[float, int]], float]:
        """How many waited at most so many seconds, for rising bounds up to infinity; and all seconds together."""
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

    def rejected(self, refusal: Rejected) -> None:
        """A request was refused, or broke. Codes are the words of this program, never the caller's."""
        self.rejects.labels(str(refusal.status), refusal.code or "").inc()

    async def metered(self, call: Call, stream: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        """The deltas of an answer, watched by the clock; what it used is counted, and what one used that was left."""
        between, clock = self.between.labels(call.model).observe, time.monotonic
        last, said, usage, running = 0.0, 0, None, call.running
        if running is not None:
            running.model = call.model
        try:
            async with aclosing(stream) as deltas:  # type: ignore[type-var]  # all of ours are generators
                async for delta in deltas:
                    now = clock()
                    if last:
                        between(now - last)
                    elif call.first is None:
                        call.first = now - call.began
                        self.first.labels(call.model).observe(call.first)
                    last = now
                    said += 1
                    if running is not None:
                        running.tokens += 1
                    if delta.finish is not None:
                        call.finishes.append(delta.finish)
                    usage = delta.usage or usage
                    yield delta
        finally:
            self.used(call, usage or Usage(completion_tokens=said))

    def used(self, call: Call, usage: Usage) -> None:
        """What a request read and wrote."""
        self.tokens.labels(call.model, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(call.model, "cached").inc(usage.cached_tokens)
        self.tokens.labels(call.model, "completion").inc(usage.completion_tokens)
        call.usage = Usage(
            prompt_tokens=call.usage.prompt_tokens + usage.prompt_tokens,
            completion_tokens=call.usage.completion_tokens + usage.completion_tokens,
            cached_tokens=call.usage.cached_tokens + usage.cached_tokens,
        )

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Standing(Collector):
    """What stands now: asked when it is read, never kept."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        """Requests at work, and what every endpoint knows of itself."""
        server = self._server
        yield GaugeMetricFamily("openbook_requests_at_work", "Requests at work", value=len(server.board))
        yield GaugeMetricFamily("openbook_ready", "Whether work is taken", value=server.unready is None)
        yield GaugeMetricFamily("openbook_start_time_seconds", "When the server began, since 1970", value=server.began)
        waits = HistogramMetricFamily("openbook_queue_seconds", "From a request to its first step", labels=["model"])
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, served in server.models.all.items():
            if served.parent is not None:  # an adapter: what it runs on speaks for itself
                continue
            if isinstance(served.endpoint, Queued):
                buckets, seconds = served.endpoint.waits()
                shown = [("+Inf" if bound == math.inf else str(bound), float(count)) for bound, count in buckets]
                waits.add_metric([name], shown, seconds)
            if isinstance(served.endpoint, Gauges):
                for key, value in served.endpoint.gauges().items():
                    _family(families, key).add_metric([name], value)
        yield waits
        yield from families.values()


def _family(families: dict[str, GaugeMetricFamily | CounterMetricFamily], key: str) -> Any:
    """Where a number of an engine goes: a counter, where its name says that it only grows."""
    if key not in families:
        name, words = f"openbook_engine_{key}", key.replace("_", " ")
        if key in GROWING:
            families[key] = CounterMetricFamily(name, f"{words} of an engine, so far", labels=["model"])
        else:
            families[key] = GaugeMetricFamily(name, f"{words} of an engine, now", labels=["model"])
    return families[key]
