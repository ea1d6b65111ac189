"""The values that pass between scheduler and engine. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Group:
    name: str
    window: int | None
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    page: int
    groups: tuple[Group, ...]
    slot_bytes: int = 0
    source: Group | None = None


@dataclass(kw_only=True)
class Ask:
    key: int
    ids: list[int]
    room: int
    root: bytes
    share: bool = True
    keep: bool = True
    source: int = 0
    priority: int = 0
    tenant: str = ""
    deadline: float | None = None
    arrived: float = 0.0


class Sequence:
    def __init__(self, ask: Ask, groups: int) -> None:
        self.ask = ask
        self.choice = 0
        self.ids = list(ask.ids)
        self.computed = 0
        self.tables: list[list[int]] = [[] for _ in range(groups)]
        self.source_table: list[int] = []
        self.slot = -1
        self.drafts: list[int] = []
        self.cached = 0
        self.state = "waiting"


class Work(NamedTuple):
    sequence: Sequence
    start: int
    count: int
    final: bool


@dataclass
class Plan:
    works: list[Work] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    slot_copies: list[tuple[int, int]] = field(default_factory=list)
    slot_clears: list[int] = field(default_factory=list)
    saves: list[tuple[int, int]] = field(default_factory=list)
    ended: list[tuple[Sequence, str]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
