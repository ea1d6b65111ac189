"""A request inside the engine: its outputs, the sequences that write them, and who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from openbook.generate.beaming import Beams
from openbook.generate.output import Line
from openbook.generate.packed import Packed
from openbook.generate.plan import Sequence
from openbook.generate.requests import Finish, Generation, Request, Token

Listener = Callable[[Token], object]


class Reading(NamedTuple):
    """What a step's forward pass gave: logits [R,V], for each sequence (first row, rows), and its states."""

    logits: Tensor
    spans: list[tuple[int, int]]
    states: list[Packed]


@dataclass(eq=False)
class Job:
    """One request on its way through the engine."""

    request: Request
    lines: list[Line]
    listener: Listener | None = None
    adapter: str | None = None
    sequences: dict[int, Sequence] = field(default_factory=dict)  # choice → the sequence that writes it
    heard: int = 1  # prompt tokens whose log-probability is known; nothing precedes the first
    beams: Beams | None = None  # set once the prompt of a beam search is read
    forked: bool = False  # whether its choices have begun
    results: list[Generation] | None = None  # of a beam search
    ended: bool = False

    @property
    def key(self) -> int:
        """The request's number in its engine."""
        return self.request.number

    @property
    def generations(self) -> list[Generation]:
        """What its choices have become, in their order."""
        return [line.result for line in self.lines] if self.results is None else self.results

    def result(self, choice: int) -> Generation:
        """What a choice has become; one that a beam search found no output for is its line's."""
        found = self.generations
        return found[choice] if choice < len(found) else self.lines[choice].result

    @property
    def open(self) -> bool:
        """Whether any choice is not done."""
        return not all(line.done for line in self.lines)

    def renew(self, version: int) -> None:
        """The weights have changed to `version`: what this request computes is nobody else's, and its tokens say so."""
        for sequence in [*self.sequences.values(), *(self.beams.sequences if self.beams is not None else ())]:
            sequence.ask.keep = sequence.ask.share = False
        for line in self.lines:
            if line.result.versions is None:
                line.result.versions = [version - 1] * len(line.result.ids)

    def end(self, line: Line, finish: Finish, error: str | None = None) -> Token:
        """Ends a choice without a token of its own; what was held back of its bytes is text now."""
        line.done = True
        line.result.finish, line.result.error = finish, error
        count = len(line.result.ids)
        last = line.result.ids[-1] if count else -1
        return Token(line.result.prompt, line.result.choice, count, last, line.watch.finish(), None, finish)


def root_of(parts: tuple[object, ...]) -> bytes:
    """What a prefix hit must agree in beside the tokens: tenant, adapter, weights, rotary length, source."""
    return blake2b(repr(parts).encode(), digest_size=16).digest()
