"""How much each key may: requests and tokens of a minute, and requests at once.

A bucket holds a minute's worth and fills all the time. A request takes its one at the door. What it reads and writes is
known when it is done: until then a key that has any tokens left may come in, and what is spent beyond is paid back by
waiting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from openbook.serve.errors import busy
from openbook.serve.keys import Key

MINUTE = 60.0
RATES, KINDS = ("limit", "remaining", "reset"), ("requests", "tokens")  # as the headers have them


class Bucket:
    """`size` in a minute."""

    def __init__(self, size: float, now: float) -> None:
        self.size, self.level, self._at = size, size, now

    def fill(self, size: float, now: float) -> None:
        """Time has passed; the size may be another."""
        self.level = min(size, self.level + (now - self._at) * size / MINUTE)
        self.size, self._at = size, now

    def until(self, level: float) -> float:
        """Seconds until it holds so much."""
        return max(0.0, (level - self.level) * MINUTE / self.size)


class Limits:
    """Of all keys, by name: they outlive a reload of the file."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self.working: Counter[str] = Counter()

    def _bucket(self, name: str, kind: str, size: float, now: float) -> Bucket:
        bucket = self._buckets.get((name, kind))
        if bucket is None:
            bucket = self._buckets[name, kind] = Bucket(size, now)
        bucket.fill(size, now)
        return bucket

    def take(self, key: Key, now: float | None = None) -> dict[str, str]:
        """Lets a request in, and says what is left, as headers; 429 where nothing is."""
        now = time.monotonic() if now is None else now
        headers: dict[str, str] = {}
        kinds = (("requests", key.requests_per_minute, 1.0), ("tokens", key.tokens_per_minute, 0.0))
        buckets = [
            (kind, self._bucket(key.name, kind, size, now), price) for kind, size, price in kinds if size is not None
        ]
        refused = next((one for one in buckets if one[1].level < 1.0), None)
        for kind, bucket, price in buckets:
            if refused is None:
                bucket.level -= price
            headers[f"x-ratelimit-limit-{kind}"] = f"{bucket.size:.0f}"
            headers[f"x-ratelimit-remaining-{kind}"] = f"{max(0.0, bucket.level):.0f}"
            headers[f"x-ratelimit-reset-{kind}"] = span(bucket.until(bucket.size))
        if refused is not None:
            kind, bucket, _ = refused
            error = busy(f"This key may use {bucket.size:g} {kind} per minute, and has.", bucket.until(1.0))
            error.headers |= headers
            raise error
        return headers

    def charge(self, key: Key, tokens: float, now: float | None = None) -> None:
        """A request used so many tokens."""
        if key.tokens_per_minute is not None and tokens:
            now = time.monotonic() if now is None else now
            self._bucket(key.name, "tokens", key.tokens_per_minute, now).level -= tokens

    @contextmanager
    def entered(self, key: Key) -> Iterator[None]:
        """Is at work while the block runs; 429 where as many are already as may be."""
        if key.concurrent is not None and self.working[key.name] >= key.concurrent:
            raise busy(f"This key may have {key.concurrent} requests at work at once, and has.", 1.0)
        self.working[key.name] += 1
        try:
            yield
        finally:
            self.working[key.name] -= 1
            if not self.working[key.name]:
                del self.working[key.name]


def span(seconds: float) -> str:
    """As the API writes a time: 850ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds, 1), MINUTE)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
