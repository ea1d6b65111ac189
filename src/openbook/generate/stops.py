"""Stop strings over a stream of token bytes: found across token borders, never shown in part.

    watch = Watch((b"\\n\\n", b"User:"))
    watch.feed(b"Hello\\n")     # releases b"Hello": the line break may be the start of a stop
    watch.feed(b"\\nUs")        # finds b"\\n\\n", releases nothing more

The text ends before the stop whose last byte comes first (the longest of those, should several end there), so the
result does not depend on where tokens begin and end. Bytes that could still become a stop are held back until they
cannot.
"""

from __future__ import annotations

from collections.abc import Sequence


class Watch:
    """Looks for `stops` (none empty) in the bytes it is fed."""

    def __init__(self, stops: Sequence[bytes]) -> None:
        self.stops = tuple(stops)
        self.held = b""  # fed, not released: the start of what may become a stop
        self.found: bytes | None = None
        self.excess = 0  # how many of all fed bytes are not text: the stop and what came with it

    def feed(self, new: bytes, *, stopping: bool = True) -> bytes:
        """Takes bytes and returns those that are certainly text. A stop sets `found`; not `stopping` lets it pass."""
        buffer = self.held + new
        if stopping:
            at = self._search(buffer, len(self.held))
            if at >= 0:
                self.held, self.excess = b"", len(buffer) - at
                return buffer[:at]
        keep = self._may_become(buffer)
        self.held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def finish(self) -> bytes:
        """No more bytes come: what was held back is text."""
        rest, self.held = self.held, b""
        return rest

    def _search(self, buffer: bytes, old: int) -> int:
        """Where the stop begins that ends first among those ending in the new bytes; -1: none."""
        best: tuple[int, int] | None = None
        for stop in self.stops:
            at = buffer.find(stop, max(0, old - len(stop) + 1))
            if at >= 0 and (best is None or (at + len(stop), at) < best):
                best, self.found = (at + len(stop), at), stop
        return -1 if best is None else best[1]

    def _may_become(self, buffer: bytes) -> int:
        """Length of the longest end of `buffer` with which a stop begins."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(buffer)), 0, -1):
            end = buffer[len(buffer) - size :]
            if any(len(stop) > size and stop.startswith(end) for stop in self.stops):
                return size
        return 0
