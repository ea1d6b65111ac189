"""Errors as replies: which status, which words. The message of an error that is ours is for the caller; that of a
defect stays in the log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil

import msgspec
from starlette.responses import Response

from openbook.errors import (
    Busy,
    GrammarError,
    InputError,
    OpenbookError,
    Overdue,
    Refusal,
    RemoteError,
    Stopped,
    TokenizerError,
    TooLong,
)
from openbook.serve.wire.basics import ErrorOut, ErrorReply

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")
_QUOTED = re.compile(r"`([a-z_0-9]+)`")
_GRAMMARS = ("structured_outputs", "response_format", "text", "tools")  # parameters that hold output to a grammar
_WORDS = {"stop_ids": ("stop_token_ids",), "trim": ("truncate", "truncation")}  # of the waist, and of requests
TOO_LONG = "context_length_exceeded"
GRAMMAR = "invalid_grammar"
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class Rejected(Exception):
    """A reply that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def about(self, request: msgspec.Struct | None, subject: str | None) -> Rejected:
        """Itself in the words of the request, with the parameter that it is about: the first of the request's that its
        message names, or `subject`."""
        if self.status == 400 and self.param is None and request is not None:
            for word, words in _WORDS.items():
                for theirs in {*words} & {*request.__struct_fields__}:
                    self.message = self.message.replace(f"`{word}`", f"`{theirs}`")
            if self.code == TOO_LONG:
                self.param = subject
            elif self.code == GRAMMAR:
                given = msgspec.structs.asdict(request)
                self.param = next((name for name in _GRAMMARS if given.get(name) is not None), None)
            else:
                named = _QUOTED.findall(self.message)
                self.param = next((name for name in named if name in request.__struct_fields__), subject)
        return self

    @property
    def body(self) -> ErrorReply:
        """What is written."""
        kind = KINDS.get(self.status)
        if kind is None:
            kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
            kind = kind if self.status < 500 else "server_error"
        return ErrorReply(error=ErrorOut(message=self.message, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        """As a whole reply."""
        return Response(
            msgspec.json.encode(self.body), self.status, headers=self.headers, media_type="application/json"
        )


def rejected(error: BaseException) -> Rejected:
    """What an error is to the caller."""
    match error:
        case Rejected():
            return error
        case msgspec.ValidationError():
            return _invalid(str(error))
        case msgspec.DecodeError():
            return Rejected(400, f"The body is not JSON: {error}.", code="invalid_json")
        case GrammarError():
            return Rejected(400, str(error), code=GRAMMAR)
        case TooLong():
            return Rejected(400, str(error), code=TOO_LONG)
        case Busy():
            return busy(str(error), error.retry_after)
        case Overdue() | TimeoutError():
            return Rejected(504, str(error) or "The request was not done in time.", code="timeout")
        case Stopped():
            return Rejected(503, str(error), code="unavailable")
        case RemoteError():
            return Rejected(502, str(error), code="bad_gateway")
        case InputError() | Refusal() | TokenizerError():
            return Rejected(400, str(error))
        case OpenbookError():
            return Rejected(500, str(error), code="failed")
    return Rejected(500, "The server failed at this request; its log says why.", code="failed")


def busy(message: str, seconds: float) -> Rejected:
    """429, and when to come again."""
    return Rejected(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(max(1, ceil(seconds)))})


def _invalid(message: str) -> Rejected:
    """What does not fit the types: which parameter, and why."""
    at = _PATH.search(message)
    path = at["path"].replace("[...]", "") if at else ""  # a key of a mapping, which is not said
    if found := _FIELD.search(message):
        path = f"{path}.{found['name']}".lstrip(".")
    if "unknown field" in message:
        return Rejected(
            400, f"Unknown parameter `{path}`: this server does not know it, and ignores nothing. Leave it out.",
            code="unknown_parameter", param=path,
        )  # fmt: skip
    return Rejected(400, f"{message}.", code="invalid_value", param=path or None)
