"""Responses that their callers asked to be kept: in memory, bounded by count, bytes and time, each its caller's own."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from openbook.serve.errors import Rejected
from openbook.serve.settings import Settings
from openbook.serve.wire.responded import ResponseOut
from openbook.serve.wire.responses import Item


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A response, the items it was asked with, and all items of the conversation up to its end."""

    response: ResponseOut
    asked: tuple[Item, ...]
    said: tuple[Item, ...]
    bytes: int
    until: float


class Stored:
    """What is kept, the oldest first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self._bytes

    def until(self) -> float:
        """When what is kept now is forgotten."""
        return time.monotonic() + self._settings.stored_seconds

    def keep(self, caller: str, kept: Kept) -> None:
        """Keeps it, and forgets the oldest where there is no room. One that would fill all of it is not kept."""
        if kept.bytes > self._settings.stored_bytes or not self._settings.stored:
            return
        self._kept[caller, kept.response.id] = kept
        self._bytes += kept.bytes
        self._forget()

    def find(self, caller: str, number: str, param: str | None = None) -> Kept:
        """The response of that id, if it is this caller's; else 404. `param`: what asked for it."""
        self._forget()
        found = self._kept.get((caller, number))
        if found is None:
            raise Rejected(
                404,
                f"There is no response {number!r:.100}. One is kept where its request says `store`: true, for "
                f"{self._settings.stored_seconds:.0f} seconds at most.",
                code="response_not_found",
                param=param,
            )
        return found

    def remove(self, caller: str, number: str) -> None:
        """Forgets it."""
        self._bytes -= self.find(caller, number).bytes
        del self._kept[caller, number]

    def _forget(self) -> None:
        """What is too old, or too much."""
        now = time.monotonic()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            full = len(self._kept) > self._settings.stored or self._bytes > self._settings.stored_bytes
            if oldest.until > now and not full:
                return
            self._kept.popitem(last=False)
            self._bytes -= oldest.bytes
