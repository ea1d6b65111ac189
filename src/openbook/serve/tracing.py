"""Spans for OpenTelemetry: one for each request, a child of the one that the caller says (W3C `traceparent`).

Where they go, and how many of them, is OpenTelemetry's own to say: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER. Names of attributes are those of its conventions for HTTP and for generative models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from openbook import __version__
from openbook.errors import MissingExtra

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtra("opentelemetry-sdk", "otel", "Tracing") from error

if TYPE_CHECKING:
    from openbook.serve.route import Call, Route


class Tracing:
    """A tracer of its own, not the process's: who uses the server as a library keeps theirs."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        resource = Resource({SERVICE_NAME: "openbook"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("openbook", __version__)
        self._parent = TraceContextTextMapPropagator()

    def begin(self, route: Route, headers: Headers) -> Span:
        """A request came in."""
        said = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        return self._tracer.start_span(
            f"{route.method} {route.path}", self._parent.extract(said), SpanKind.SERVER,
            {"http.request.method": route.method, "http.route": route.path},
        )  # fmt: skip

    def end(self, span: Span, call: Call | None, number: str, status: int) -> None:
        """It came to its end."""
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("openbook.request.id", number)
        if call is not None:
            span.set_attribute("enduser.id", call.caller.name)
            if call.model:
                span.set_attribute("gen_ai.response.model", call.model)
                span.set_attribute("gen_ai.usage.input_tokens", call.usage.prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", call.usage.completion_tokens)
                span.set_attribute("openbook.usage.cached_tokens", call.usage.cached_tokens)
            if call.finishes:
                span.set_attribute("gen_ai.response.finish_reasons", call.finishes)
            if call.first is not None:
                span.set_attribute("openbook.time_to_first_token", call.first)
            if call.running is not None and call.running.stopped is not None:
                span.set_attribute("openbook.stopped", call.running.stopped)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Sends what was not sent yet."""
        self._provider.shutdown()
