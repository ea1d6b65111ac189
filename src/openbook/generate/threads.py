"""How many threads a step uses, learned from how long steps take.

A step is made of many short parallel parts, and each waits for its last thread. Where another process has one of the
cores, two threads can be ten times slower than one, which is why it is worth asking. In an exact engine the number of
threads changes no bit of any answer, so every step may have its own.

For each size of a step there are two ways, all threads and one. The one that was faster of late is taken; the other is
tried again now and then, the more seldom the more it loses by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RECENT = 0.3  # weight of the newest step
SHARE = 20  # a try costs at most one part in so many of the time
OFTEN, SELDOM = 32, 4096  # steps between two tries of the way that lost
FIRST = 8  # steps before the first try


@dataclass
class _Way:
    seconds: float = 0.0  # of a step, of late; 0: not known
    steps: int = 0


@dataclass
class _Size:
    ways: tuple[_Way, _Way] = field(default_factory=lambda: (_Way(), _Way()))  # all threads, one
    wait: int = FIRST  # steps until the other way is tried
    tried: int | None = None  # the way that this step tries


class Threads:
    """Chooses among `most` threads and one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._sizes: dict[int, _Size] = {}

    def choose(self, tokens: int) -> int:
        """Threads for a step of so many tokens."""
        if self.most < 2:
            return self.most
        size = self._sizes.setdefault(tokens.bit_length(), _Size())
        better = self._better(size)
        size.tried = None
        size.wait -= 1
        if size.wait <= 0:
            size.tried = better = 1 - better
        return 1 if better else self.most

    def note(self, tokens: int, threads: int, seconds: float) -> None:
        """How long the step took."""
        if self.most < 2:
            return
        size = self._sizes[tokens.bit_length()]
        way = 0 if threads == self.most else 1
        own, other = size.ways[way], size.ways[1 - way]
        own.steps += 1
        # The first step of a size warms caches up; what a try finds counts at once.
        known = own.seconds if own.steps > 2 and size.tried is None else 0.0
        own.seconds = seconds if not known else known + RECENT * (seconds - known)
        if size.tried is not None:
            ratio = own.seconds / other.seconds if other.seconds else 1.0
            size.wait = min(SELDOM, max(OFTEN, int(SHARE * ratio)))
        elif way == 0 and own.steps > 2 and seconds > 4 * own.seconds and not other.seconds:
            size.wait = 0  # something is in the way: ask at once

    def _better(self, size: _Size) -> int:
        many, one = size.ways
        return 1 if one.seconds and many.seconds and one.seconds < many.seconds else 0
