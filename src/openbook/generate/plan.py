"""The values that pass between the engine and its scheduler. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from openbook.errors import Busy

if TYPE_CHECKING:
    from openbook.generate.entries import Entry

Standing = Literal["waiting", "running", "done"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers whose keys live equally long: they share one table of pages. `nbytes` of a page over all its layers."""

    name: str
    window: int | None
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a sequence of a model keeps: pages of `page` tokens in each group, a slot of recurrent state, its source."""

    page: int
    groups: tuple[Group, ...]
    slot_bytes: int = 0
    source: Group | None = None


@dataclass(kw_only=True, eq=False)
class Ask:
    """What the scheduler must know of a request."""

    key: int  # unique
    ids: list[int]  # the prompt
    room: int  # most output tokens
    root: bytes  # what a prefix hit must agree in beside the ids
    share: bool = True  # may read the prefix cache
    keep: bool = True  # may be kept in it
    source: int = 0  # tokens of its source
    priority: int = 0  # higher first
    tenant: str = ""  # fairness is between these
    deadline: float | None = None
    arrived: float = 0.0


class Full(Busy):
    """Too many requests wait."""


class Sequence:
    """One output on its way. `tables`: pages of each group, -1 where a window has given one back."""

    __slots__ = (
        "ask", "cached", "choice", "computed", "drafts", "entries", "event", "ids", "order", "paused", "ready", "slot",
        "source_table", "started", "state", "tables",
    )  # fmt: skip

    def __init__(self, ask: Ask, groups: int, choice: int = 0) -> None:
        self.ask = ask
        self.choice = choice
        self.ids = list(ask.ids)  # prompt and output
        self.computed = 0  # tokens whose keys and state are there
        self.tables: list[list[int]] = [[] for _ in range(groups)]
        self.source_table: list[int] = []
        self.slot = -1
        self.drafts: list[int] = []
        self.cached = 0  # prompt tokens taken from the prefix cache
        self.entries: list[Entry] = []  # of its first pages, in the prefix cache
        self.ready = 0  # tokens up to here can be written: its pages are its own
        self.event = 0  # as many computed tokens, and the pool has something to do
        self.state: Standing = "waiting"
        self.paused = False
        self.started = False
        self.order = (-ask.priority, ask.arrived, ask.key, choice)  # who comes first among those that run

    def __repr__(self) -> str:
        return f"Sequence({self.ask.key}.{self.choice} {self.state} {self.computed}/{len(self.ids)})"


@dataclass(slots=True, eq=False)
class Work:
    """A sequence's part of a step: `count` tokens from `start` on; the last of them are its drafts, if it has any."""

    sequence: Sequence
    start: int
    count: int
    final: bool  # it reaches the end of what is there: logits are wanted

    @property
    def tokens(self) -> list[int]:
        """The ids that are read."""
        sequence = self.sequence
        ids = sequence.ids[self.start : self.start + self.count]
        return ids if len(ids) == self.count else ids + sequence.drafts[: self.count - len(ids)]


@dataclass(eq=False)
class Plan:
    """One step. Before it: `copies` of pages (group, source, target), then `slot_copies` (source or -1: zeros, target),
    each list in order. After it: `saves` (slot, snapshot). `ended`: who ended without work, and why."""

    works: list[Work] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    slot_copies: list[tuple[int, int]] = field(default_factory=list)
    saves: list[tuple[int, int]] = field(default_factory=list)
    snapshots: list[tuple[Sequence, int, int]] = field(default_factory=list)  # (sequence, border, snapshot)
    begun: list[Sequence] = field(default_factory=list)  # for the first time
    ended: list[tuple[Sequence, Literal["deadline", "memory"]]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
