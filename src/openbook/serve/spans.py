"""Whether requests are traced. OpenTelemetry itself is known to tracing.py alone, which is imported only then."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers

from openbook.serve.settings import Settings

if TYPE_CHECKING:
    from openbook.serve.route import Call, Route

WHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Traces(Protocol):
    """Makes a span of every request."""

    def begin(self, route: Route, headers: Headers) -> Any:
        """A request came in."""
        ...

    def end(self, span: Any, call: Call | None, number: str, status: int) -> None:
        """It came to its end."""
        ...

    def close(self) -> None:
        """Sends what was not sent yet."""
        ...


def traces(settings: Settings) -> Traces | None:
    """What the settings, or the variables of OpenTelemetry, ask for."""
    if not settings.tracing and not any(os.environ.get(name) for name in WHERE):
        return None
    from openbook.serve.tracing import Tracing

    return Tracing()
