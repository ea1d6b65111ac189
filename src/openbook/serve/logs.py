"""A line for every request: who, what, how long, how it ended. JSON, or on a terminal words for people.

What is said stays out unless asked for, and keys always do. Whatever comes from outside (an id, an address) is written
so that it stays inside its line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, TextIO

from starlette.types import Scope

from openbook.log import colour_wanted, write

if TYPE_CHECKING:
    from openbook.serve.route import Call, Route
    from openbook.serve.settings import Settings

COLOURS = {2: "32", 4: "33", 5: "31"}  # by the first digit of a status


class Log:
    """Writes to standard error, or where it is told to."""

    def __init__(self, settings: Settings, stream: TextIO | None = None) -> None:
        self.settings = settings
        self._stream = stream

    def request(
        self, route: Route, call: Call | None, number: str, status: int, seconds: float, remote: str = ""
    ) -> None:
        """A request came to its end."""
        fields: dict[str, Any] = {
            "id": number,
            "route": f"{route.method} {route.path}",
            "status": status,
            "seconds": round(seconds, 4),
            "remote": remote,
            "caller": "" if call is None else call.caller.name,
            "model": "" if call is None else call.model,
        }
        if call is not None and call.usage.total_tokens:
            fields["prompt_tokens"] = call.usage.prompt_tokens
            fields["cached_tokens"] = call.usage.cached_tokens
            fields["completion_tokens"] = call.usage.completion_tokens
        if call is not None and call.first is not None:
            fields["first"] = round(call.first, 4)
        if call is not None and call.finishes:
            fields["finish"] = call.finishes
        if call is not None and call.running is not None and call.running.stopped is not None:
            fields["stopped"] = call.running.stopped
        self.say("request", **fields)

    def failure(self, number: str, error: BaseException) -> None:
        """A defect, or something that broke, with where."""
        self.say("failure", id=number, error=repr(error), trace="".join(traceback.format_exception(error)))

    def say(self, event: str, /, **fields: Any) -> None:
        """Something else that happened."""
        stream = self._stream or sys.stderr
        try:
            if stream.isatty():
                line = for_people(event, fields, colour_wanted(stream))
            else:
                line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
            write(stream, line + "\n")
        except (OSError, ValueError):
            return  # a log that cannot be written is no reason to stop serving


class Handler(logging.Handler):
    """What libraries have to say, as lines of the same log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One thing that was said."""
        trace = "" if record.exc_info is None else "".join(traceback.format_exception(*record.exc_info))
        self._log.say("said", by=record.name, level=record.levelname, text=record.getMessage(), trace=trace)


def for_people(event: str, fields: dict[str, Any], colour: bool) -> str:
    """A line to be read on a terminal."""
    said = dict(fields)
    words = [time.strftime("%H:%M:%S")]
    if event == "request":
        status = str(said.pop("status"))
        words.append(f"\x1b[{COLOURS.get(int(status[0]), '0')}m{status}\x1b[0m" if colour else status)
        words += [f"{said.pop('seconds'):8.3f}s", plain(said.pop("route"))]
    else:
        words.append(event)
    trace = said.pop("trace", "")
    words += [f"{name}={plain(value)}" for name, value in said.items() if value not in ("", None)]
    return " ".join(words) + "".join(f"\n    {plain(line)}" for line in str(trace).splitlines())


def plain(value: object) -> str:
    """A value on one line of a terminal, which obeys nothing in it."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def remote_of(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""
