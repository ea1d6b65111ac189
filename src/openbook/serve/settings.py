"""Every bound and policy of a server, in one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from openbook.errors import ConfigError

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves; seconds, bytes and counts."""

    host: str = "127.0.0.1"
    """Without keys nothing but this machine itself (127.0.0.1, ::1, localhost) is listened to."""
    port: int = 8000
    api_keys: Path | None = None
    """File of hashed keys (see gate.py)."""
    hosts: tuple[str, ...] = ()
    """Names that a Host header may have beside the address that is listened to."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may read replies (CORS) and open WebSockets; none by default."""
    open_health: bool = False
    """Whether /health/live and /health/ready answer without a key, where there are keys."""
    header: int = 32 << 10
    """Bytes of a request's header at most; 431."""
    body: int = 8 << 20
    """Bytes of a request at most."""
    body_seconds: float = 30.0
    """For a request's header, and again for its body, to arrive."""
    requests: int = 16_384
    """Requests at work at once; more are answered 429."""
    connections: int = 20_000
    """Open connections; more are answered 503."""
    timeout: float | None = None
    """For a request, unless it asks for less; then 504."""
    keep_alive: float = 15.0
    """Between comments in a stream in which nothing comes."""
    stall: float = 30.0
    """That a reader may leave a full buffer unread; then its stream is dropped and its work stopped."""
    drain: float = 600.0
    """That running work is given at shutdown."""
    cached_price: float = 0.1
    """Of a prompt token that was found in the prefix cache, in tokens."""
    stored: int = 1024
    """Responses kept for those who ask for it (`store`), the oldest forgotten first."""
    stored_bytes: int = 64 << 20
    """Of them together."""
    stored_seconds: float = 86_400.0
    """That each of them is kept."""
    log_prompts: bool = False
    """Whether what is asked is logged; by default only its length in tokens is."""
    tracing: bool = False
    """Spans for OpenTelemetry; also on where OTEL_EXPORTER_OTLP_ENDPOINT says where they go."""

    def __post_init__(self) -> None:
        for name, least in (
            ("port", 0), ("header", 256), ("body", 1), ("requests", 1), ("connections", 1),
            ("stored", 0), ("stored_bytes", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"`{name}` must be a whole number, at least {least}: got {value!r}.")
        for name in ("body_seconds", "keep_alive", "stall", "drain", "stored_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be seconds, more than 0: got {getattr(self, name)!r}.")
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigError(f"`timeout` must be seconds, more than 0: got {self.timeout!r}.")
        if not 0 <= self.cached_price <= 1:
            raise ConfigError(f"`cached_price` must be from 0 to 1: got {self.cached_price!r}.")
        if self.api_keys is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"Without keys a server listens to this machine alone: got host {self.host!r}. Give a file of keys "
                f"(--api-keys), or use {LOOPBACK[0]}."
            )
        for origin in self.origins:
            if origin == "*" and self.api_keys is not None:
                raise ConfigError("`origins` cannot be `*` where there are keys: name the pages that may use them.")
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(f"An origin is a scheme and a host, such as https://chat.example: got {origin!r}.")
