"""What a chat template may cost: see `sandbox.py`, which charges it.

Everything is paid for before it is done, at the size that it will have: the only bombs are those that make much out of
little, and those are priced by what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from itertools import permutations
from typing import Any

GRANT = 10_000_000  # work a template may do for an empty conversation: a character costs 1, a member 5, a step 50
FACTOR = 200  # and further for each character of the messages
PAIR = 150  # and for each pair of messages: published templates look from every message at all the others
MANY = 2000  # messages, from which on there is no more for pairs
STEP = 50
MEMBER = 5
DEPTH = 200
BITS = 4096  # of an integer
WIDTH = 1000  # of padding and indentation
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")


_NOTHING: dict[str, str] = {}
_VIEWS = (type(_NOTHING.keys()), type(_NOTHING.values()), type(_NOTHING.items()))
_HOLDERS = (list, tuple, set, frozenset, *_VIEWS)


class Overrun(Exception):
    """The template asked for more work than its budget."""


class Budget:
    """Work that is left."""

    def __init__(self, given: int, messages: int = 1) -> None:
        """For a conversation of so many `messages`, `given` characters together."""
        self.left = GRANT + FACTOR * given + PAIR * min(messages, MANY) ** 2

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise Overrun

    def weigh(self, value: Any) -> int:
        """Pay for `value` with all that it holds; what it weighs is returned."""
        before = self.left
        self._weigh(value, 0)
        return before - self.left

    def _weigh(self, value: Any, depth: int) -> None:
        if isinstance(value, str):
            self.spend(len(value) + 1)
        elif depth > DEPTH:
            raise Overrun
        elif isinstance(value, dict):
            self.spend(MEMBER * (len(value) + 1))
            for key, member in value.items():
                self._weigh(key, depth + 1)
                self._weigh(member, depth + 1)
        elif isinstance(value, _HOLDERS):
            self.spend(MEMBER * (len(value) + 1))
            for member in value:
                self._weigh(member, depth + 1)
        else:
            self.spend(MEMBER * (len(value) + 1) if isinstance(value, range) else 1)

    def pay_number(self, operator: str, left: int, right: int) -> None:
        """Refuse to make numbers of thousands of digits."""
        bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > BITS:
            raise Overrun

    def shallow(self, value: Any) -> int:
        """Pay for `value` as one who copies it, the members unseen; what that costs is returned."""
        if isinstance(value, str):
            cost = len(value) + 1
        else:
            cost = MEMBER * (len(value) + 1) if isinstance(value, Sized) else 1
        self.spend(cost)
        return cost

    def compare(self, value: Any) -> None:
        """Pay for `value` as one side of a comparison: machines compare text many characters at a time."""
        if isinstance(value, str):
            self.spend(1 + len(value) // 16)
        else:
            self.weigh(value)

    def search(self, value: Any) -> None:
        """Pay for looking something up in `value`."""
        if isinstance(value, Mapping):
            self.spend(1)
        else:
            self.compare(value)

    def walked(self, values: Any, each: int) -> Iterator[Any]:
        """`values`, each paid for as it is taken."""
        for value in values:
            self.spend(each)
            yield value

    def pay_filter(self, name: str, value: Any, given: list[Any]) -> None:
        """Pay for what the filter `name` reads, and for what it will make where that can be more."""
        weight = self.weigh(given)
        if name in ("first", "last", "length", "count", "default", "d", "items"):
            return
        if name in ("list", "reverse", "batch", "slice", "sum"):
            self.spend(MEMBER * len(value) if isinstance(value, Sized) else 1)
        else:
            weight += self.weigh(value)
        if name in ("sort", "unique", "groupby", "min", "max", "dictsort"):
            self.spend(weight * weight.bit_length() // 4)
        elif name == "join":
            self.spend(sum(len(str(one)) for one in given) * len(value))
        elif name == "replace":
            self.pay_method(str(value), name, given)
        elif name == "format":
            self.pay_format(str(value), "%", given)
        elif name in ("indent", "round", "center", "batch", "slice", "sum"):
            width = max((len(one) if isinstance(one, str) else int(one) for one in given if _sized(one)), default=4)
            if width > WIDTH or any(isinstance(one, list | tuple) for one in given):
                raise Overrun
            self.spend(width)
            if name == "indent":
                self.spend(str(value).count("\n") * width)
        elif name == "tojson" and given:
            members, depth = _shape(value)
            for one in given:  # as separators, or as indentation: of every member, or for every level of it
                if isinstance(one, int) and one > WIDTH:
                    raise Overrun
                self.spend(
                    members
                    * max(
                        self.weigh(one),
                        depth * (len(one) if isinstance(one, str) else int(one or 0)) if _sized(one) else 1,
                    )
                )

    def pay_method(self, owner: str, name: str, given: list[Any]) -> None:
        """Pay for what the method `name` of the string `owner` will make."""
        self.spend(len(owner))
        if name == "replace" and len(given) >= 2:
            for old, new in permutations([str(one) for one in given[:2]]):  # by name they come in any order
                self.spend((owner.count(old) if old else len(owner) + 1) * len(new))
        elif name == "join" and given:
            self.spend(len(owner) * len(given[0]))
            self.weigh(given[0])
        elif name in ("format", "format_map"):
            self.pay_format(owner, "{", given)
        elif name in ("split", "rsplit", "splitlines"):
            self.spend(
                MEMBER * (owner.count(given[0]) if given and isinstance(given[0], str) and given[0] else len(owner))
            )
        elif name in PADDING:
            if any(isinstance(one, int) and one > WIDTH for one in given):
                raise Overrun
            self.spend(WIDTH + (owner.count("\t") * WIDTH if name == "expandtabs" else 0))

    def pay_format(self, pattern: str, mark: str, values: Any) -> None:
        """Pay for formatting; widths are limited and may not come from the arguments."""
        if re.search(r"\d{4,}|\{[^}]*\{|%[^a-zA-Z%]*\*", pattern):
            raise Overrun
        self.spend((pattern.count(mark) + 1) * (self.weigh(values) + WIDTH))


def _sized(value: Any) -> bool:
    return isinstance(value, str | int)


def _shape(value: Any) -> tuple[int, int]:
    """How many members `value`, which was weighed, has at all depths, and how deep it is."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    shapes = [_shape(member) for member in inner]
    return 1 + sum(members for members, _ in shapes), 1 + max((depth for _, depth in shapes), default=0)
