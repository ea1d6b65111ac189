"""Which of several replicas a request goes to: the one that has read the most of its prompt already, unless it is busy.

A prompt is cut into blocks, each hashed together with all before it, as the engines' prefix caches do it: two prompts
share a mark exactly as far as they share a beginning. A replica is remembered by the marks of what it was sent last.
It keeps a conversation, and a system prompt its callers, where their keys and values are; a replica that has `slack`
requests more at work than the least busy one is passed over, for reading a prompt again is cheaper than waiting.

A policy of plain values: no network, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

BLOCK = 256  # characters of a prompt
MARKS = 1 << 16  # remembered, the latest used
DEEPEST = 256  # blocks of a prompt that are looked at


def marks_of(tenant: str, parts: Sequence[str]) -> list[bytes]:
    """The marks of a prompt, given as texts in their order. Tenants share none."""
    text = "\0".join(parts)
    mark = blake2b(tenant.encode(), digest_size=12).digest()
    marks: list[bytes] = []
    for start in range(0, min(len(text), BLOCK * DEEPEST), BLOCK):
        block = text[start : start + BLOCK]
        if len(block) < BLOCK and marks:
            break  # what follows may go on in any way
        mark = blake2b(mark + block.encode(errors="surrogatepass"), digest_size=12).digest()
        marks.append(mark)
    return marks


class Prefixes:
    """Remembers who has read what."""

    def __init__(self, slack: int = 8, most: int = MARKS) -> None:
        self.slack = slack
        self._most = most
        self._last: OrderedDict[bytes, str] = OrderedDict()

    def choose(self, marks: Sequence[bytes], loads: Mapping[str, int]) -> str:
        """The replica for a prompt of these marks, of those in `loads` (requests at work); it is remembered."""
        least = min(loads.values())
        known = next((self._last[mark] for mark in reversed(marks) if self._last.get(mark) in loads), None)
        if known is None or loads[known] > least + self.slack:
            known = min(loads, key=lambda name: (loads[name], name))
        for mark in marks:
            self._last[mark] = known
            self._last.move_to_end(mark)
        while len(self._last) > self._most:
            self._last.popitem(last=False)
        return known
