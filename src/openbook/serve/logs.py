"""A line of JSON for every request: who, what, how long, how it ended. What is said stays out unless asked for."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, TextIO

from openbook import log

if TYPE_CHECKING:
    from openbook.serve.route import Call, Route
    from openbook.serve.settings import Settings


class Log:
    """Writes to standard error, or where it is told to."""

    def __init__(self, settings: Settings, stream: TextIO | None = None) -> None:
        self.settings = settings
        self._stream = stream

    def request(self, route: Route, call: Call | None, number: str, status: int, seconds: float) -> None:
        """A request came to its end."""
        self._write(
            event="request", id=number, route=f"{route.method} {route.path}", status=status,
            seconds=round(seconds, 4), caller="" if call is None else call.caller.name,
            model="" if call is None else call.model,
        )  # fmt: skip

    def failure(self, number: str, error: BaseException) -> None:
        """A defect, or something that broke, with where."""
        self._write(event="failure", id=number, error=repr(error), trace="".join(traceback.format_exception(error)))

    def say(self, event: str, /, **fields: Any) -> None:
        """Something else that happened."""
        self._write(event=event, **fields)

    def _write(self, **fields: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), **fields}, ensure_ascii=False)
        try:
            log.write(self._stream or sys.stderr, line + "\n")
        except (OSError, ValueError):
            return  # a log that cannot be written is no reason to stop serving
