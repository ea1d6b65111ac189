"""What a chat template may cost: see `sandbox.py`, which charges it.

Everything is paid for before it is done, at the size that it will have: the only bombs are those that make much out of
little, and those are priced by what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import permutations
from typing import Any

GRANT = 10_000_000  # work a template may do for an empty conversation: a character costs 1, a member 5, a step 50
FACTOR = 200  # and further for each character of the messages
STEP = 50
MEMBER = 5
DEPTH = 200
BITS = 4096  # of an integer
WIDTH = 1000  # of padding and indentation


class Overrun(Exception):
    """The template asked for more work than its budget."""


class Budget:
    """Work that is left."""

    def __init__(self, given: int) -> None:
        self.left = GRANT + FACTOR * given

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
        elif isinstance(value, list | tuple | set | frozenset):
            self.spend(MEMBER * (len(value) + 1))
            for member in value:
                self._weigh(member, depth + 1)
        elif isinstance(value, Mapping):
            self.spend(MEMBER * (len(value) + 1))
            for key, member in value.items():
                self._weigh(key, depth + 1)
                self._weigh(member, depth + 1)
        elif isinstance(value, range):
            self.spend(MEMBER * (len(value) + 1))
        else:
            self.spend(1)

    def pay_number(self, operator: str, left: int, right: int) -> None:
        """Refuse to make numbers of thousands of digits."""
        bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > BITS:
            raise Overrun

    def pay_filter(self, name: str, value: Any, given: list[Any]) -> None:
        """Pay for what the filter `name` reads, and for what it will make where that can be more."""
        weight = self.weigh(value) + self.weigh(given)
        if name == "join":
            self.spend(sum(len(str(one)) for one in given) * len(value))
        elif name == "replace":
            self.pay_method(str(value), name, given)
        elif name == "format":
            self.pay_format(str(value), "%", given)
        elif name in ("indent", "round", "tojson"):
            width = max((len(one) if isinstance(one, str) else int(one) for one in given if _sized(one)), default=4)
            if width > WIDTH:
                raise Overrun
            if name == "indent":
                self.spend(str(value).count("\n") * width)
            elif name == "tojson" and given:
                self.spend(weight * DEPTH // 10)

    def pay_method(self, owner: str, name: str, given: list[Any]) -> None:
        """Pay for what the method `name` of the string `owner` will make."""
        self.spend(len(owner))
        if name == "replace" and len(given) >= 2:
            for old, new in permutations([str(one) for one in given[:2]]):  # by name they come in any order
                self.spend((owner.count(old) if old else len(owner) + 1) * len(new))
        elif name == "join" and given:
            self.spend(len(owner) * len(given[0]))
            self.weigh(given[0])
        elif name == "format":
            self.pay_format(owner, "{", given)

    def pay_format(self, pattern: str, mark: str, values: Any) -> None:
        """Pay for formatting; widths are limited and may not come from the arguments."""
        if re.search(r"\d{4,}|\{[^}]*\{|%[^a-zA-Z%]*\*", pattern):
            raise Overrun
        self.spend((pattern.count(mark) + 1) * (self.weigh(values) + WIDTH))


def _sized(value: Any) -> bool:
    return isinstance(value, str | int)
