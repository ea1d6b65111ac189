"""Replies that are no success, read as forgivingly as servers differ, and the errors that they become.

400, 413, 422 about length     TooLong        401, 403            RemoteError: which key to look at
400, 404, 409, 413, 422        InputError     429                 Busy, with the seconds to wait
404, 405, 501 about a path     Refusal        429 without money   RemoteError, and so is all else
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from openbook.chat.wire.reply import parsed
from openbook.chat.wire.request import Fields
from openbook.errors import Busy, InputError, OpenbookError, Refusal, RemoteError, TooLong

TOO_LONG = ("context_length_exceeded", "context length", "exceed_context_size", "context window", "context size")
KINDS = {"invalid_request_error": 400, "BadRequestError": 400, "rate_limit_error": 429}  # → status, inside a stream
RETRY_AFTER = 1.0  # seconds, where a busy endpoint does not say


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A reply that is no success. `code` is what says the kind of error, in whatever field; `wait`: in seconds."""

    status: int
    message: str = ""
    code: str = ""
    param: str = ""
    wait: float | None = None

    @classmethod
    def of(cls, status: int, said: Any, headers: Mapping[str, str]) -> Unanswered:
        """From the body: {"error": {…}}, {"error": "…"}, {"message": …}, {"detail": …}, or a text."""
        fields = said if isinstance(said, dict) else {}
        error = fields.get("error") or fields
        inner = error if isinstance(error, dict) else {}
        message = inner.get("message") or inner.get("detail") or error or said
        return cls(
            status=status,
            message=str(message or "no reason is given"),
            code=f"{inner.get('code') or ''} {inner.get('type') or ''}".strip(),
            param=str(inner.get("param") or ""),
            wait=seconds_of(headers),
        )

    @classmethod
    def within(cls, event: Mapping[str, Any]) -> Unanswered:
        """From an event of a stream that says that all failed."""
        found = cls.of(500, event, {})
        known = (int(word) if re.fullmatch("[45][0-9]{2}", word) else KINDS.get(word) for word in found.code.split())
        status = next((status for status in known if status), 500)
        return cls(status=status, message=found.message, code=found.code, param=found.param)

    @property
    def too_long(self) -> bool:
        """Whether the prompt does not fit the context."""
        said = f"{self.code} {self.message}".lower()
        return self.status in (400, 413, 422, 500) and any(word in said for word in TOO_LONG)

    @property
    def no_model(self) -> bool:
        """Whether there is no model of the name that was asked for."""
        return self.status in (400, 404) and (
            "model_not_found" in self.code or self.param == "model" or (self.status == 404 and "model" in self.message)
        )

    def unwelcome(self, fields: Fields) -> str | None:
        """The field that the endpoint does not take and that can be yielded, for nothing of the answer hangs on it."""
        said = f"{self.code} {self.param} {self.message}"
        words = set(re.split(r"[^a-z_]+", said.lower()))
        if self.status not in (400, 422):
            return None
        if "max_tokens" in fields and {"max_completion_tokens", "unsupported"} <= words:
            return "max_tokens"
        return next((name for name in ("stream_options", "user") if name in fields and name in words), None)


def conceded(fields: Fields, unwelcome: Set[str]) -> Fields:
    """A request without the fields that an endpoint does not take, `max_tokens` by its newer name."""
    kept = {name: value for name, value in fields.items() if name not in unwelcome}
    if "max_tokens" in unwelcome and "max_tokens" in fields:
        kept["max_completion_tokens"] = fields["max_tokens"]
    return kept


def error_of(found: Unanswered, where: str, said: str, key_from: str | None) -> OpenbookError:
    """The error that a reply becomes. `said`: its message, fit to be shown; `key_from`: None where no key was sent."""
    text = f"{where} says: {said}"
    if found.too_long:
        return TooLong(text)
    match found.status:
        case 401 | 403:
            hint = f"Look at the key from {key_from}." if key_from else "It was asked without a key."
            return RemoteError(f"{text} (HTTP {found.status}). {hint}")
        case 429 if "insufficient_quota" not in found.code:
            return Busy(text, RETRY_AFTER if found.wait is None else found.wait)
        case 405 | 501:
            return Refusal(text)
        case 404 if not found.no_model:
            return Refusal(f"{text} (HTTP 404). It does not have what was asked for, or has it at another address.")
        case 400 | 404 | 409 | 413 | 422:
            return InputError(text)
    return RemoteError(f"{text} (HTTP {found.status}).")


def body_of(raw: bytes) -> Any:
    """The body of an error, which may be anything."""
    try:
        return parsed(raw)
    except RemoteError:
        return raw.decode(errors="replace")


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for: seconds, or a date."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
