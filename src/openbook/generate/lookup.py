"""Drafts for nothing: what followed the last time that the sequence ended as it ends now (prompt lookup).

An index of the sequence's own n-grams, kept as it grows: `extend` and `propose` cost the same however long it is. Where
copied text (quotations, code, edited documents) is written, most drafts are right; elsewhere nothing is proposed and
nothing is lost (Saxena 2023, "Prompt Lookup Decoding"; the chains are those of LZ77, Ziv & Lempel 1977).

    a b c d e f … a b c │        the longest ending that was there before: a b c
          └──────────────▶ d e f …   is what followed it
"""

from __future__ import annotations

from collections.abc import Sequence

CHAIN = 16  # earlier places of an ending that are compared, the latest first


class Lookup:
    """The n-grams of one sequence. Endings of `shortest` to `longest` ids count."""

    def __init__(self, ids: Sequence[int] = (), *, longest: int = 8, shortest: int = 2) -> None:
        assert 1 <= shortest <= longest
        self.longest, self.shortest = longest, shortest
        self.ids: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}  # an n-gram of `shortest` ids → where its latest follower stands
        self._before: list[int] = []  # for each place, the one before it that follows the same n-gram; -1: none
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Takes the ids that were written."""
        for token in ids:
            place = len(self.ids)
            ending = tuple(self.ids[place - self.shortest : place]) if place >= self.shortest else ()
            self._before.append(self._latest.get(ending, -1) if ending else -1)
            if ending:
                self._latest[ending] = place
            self.ids.append(token)

    def propose(self, count: int) -> list[int]:
        """Up to `count` ids that may follow; none where the ending is new."""
        ids, size = self.ids, len(self.ids)
        if count < 1 or size <= self.shortest:
            return []
        place = self._latest.get(tuple(ids[size - self.shortest :]), -1)
        best, length = -1, 0
        for _ in range(CHAIN):
            if place < 0 or length == self.longest:
                break
            same = self._same(place)
            if same > length:
                best, length = place, same
            place = self._before[place]
        if best < 0:
            return []
        found: list[int] = []
        for offset in range(count):  # beyond the end it goes on with itself: a loop is continued as a loop
            at = best + offset
            found.append(ids[at] if at < size else found[at - size])
        return found

    def _same(self, place: int) -> int:
        """How many ids before `place` equal the end of the sequence, up to `longest`."""
        ids, size = self.ids, len(self.ids)
        same = self.shortest
        while same < self.longest and same < place and ids[place - 1 - same] == ids[size - 1 - same]:
            same += 1
        return same


def lookup(ids: Sequence[int], count: int, *, longest: int = 8, shortest: int = 2) -> list[int]:
    """What `Lookup` proposes after `ids`; for one question."""
    return Lookup(ids, longest=longest, shortest=shortest).propose(count)
