"""What the pool of pages counts by: the numbers of one kind, and what the prefix cache knows of a full page."""

from __future__ import annotations

from array import array
from hashlib import blake2b


class Entry:
    """A full page of some prompt, in every group, and perhaps the recurrent state behind it."""

    __slots__ = ("digest", "ids", "pages", "since", "snapshot", "users")

    def __init__(self, digest: bytes, ids: list[int], pages: list[int]) -> None:
        self.digest = digest
        self.ids = ids
        self.pages = pages  # of each group; -1: not kept
        self.snapshot = -1
        self.users = 0  # sequences that stand on it
        self.since = 0.0  # when the last of them left


class Numbers:
    """The page numbers of one group: low ones first, those given back last are the next."""

    def __init__(self, nbytes: int, capacity: int) -> None:
        self.nbytes = nbytes
        self.capacity = capacity
        self.refs: list[int] = []  # of each number handed out so far
        self.free: list[int] = []

    def take(self) -> int:
        """A number with one user; the caller has seen to the memory."""
        if self.free:
            number = self.free.pop()
            self.refs[number] = 1
            return number
        self.refs.append(1)
        return len(self.refs) - 1

    @property
    def used(self) -> int:
        """Numbers that somebody has."""
        return len(self.refs) - len(self.free)


def digest_of(before: bytes, ids: list[int]) -> bytes:
    """What a page is known by: all that came before it, and its own ids."""
    return blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
