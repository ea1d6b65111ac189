"""How an engine shares one model, and what it has done."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, fields

from openbook.errors import InputError
from openbook.generate.plan import Sequence
from openbook.generate.store import PAGE

WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an engine shares one model."""

    memory: int | str | None = None
    """Bytes for keys, values and states ("2GiB"); None: a part of what is free."""
    rows: int = 64
    """Sequences in one step at most."""
    tokens: int = 512
    """Tokens in one step at most: prompts are read in chunks of what the running sequences leave."""
    page: int = PAGE
    """Tokens of a page."""
    kv: str | None = None
    """Keys and values in float32, bfloat16 or int8; None: float32 where the weights are, else bfloat16."""
    context: int | None = None
    """Tokens of prompt and output together; None: the model's own."""
    prefix_cache: bool = True
    """Whether pages of earlier prompts are reused."""
    prefix_ttl: float | None = None
    """Seconds that unused pages are kept; None: until memory is wanted."""
    prefix_minimum: int = 0
    """Shorter prefixes (in tokens) are not kept."""
    adapt_threads: bool = True
    """Whether an exact engine on a CPU learns how many threads a step should have (see threads.py)."""
    speculation: str | None = None
    """"lookup": drafts from the text itself. A draft model is handed to the engine."""
    drafts: int = 6
    """Drafts of a sequence in one step at most."""
    waiting: int = 1024
    """Requests that wait at most."""
    waiting_tokens: int = 1 << 20
    """Prompt tokens that wait at most."""

    def __post_init__(self) -> None:
        whole = (
            ("rows", self.rows, 1),
            ("tokens", self.tokens, 1),
            ("page", self.page, 1),
            ("context", 1 if self.context is None else self.context, 1),
            ("drafts", self.drafts, 0),
            ("prefix_minimum", self.prefix_minimum, 0),
            ("waiting", self.waiting, 1),
            ("waiting_tokens", self.waiting_tokens, 0),
        )
        for name, value, least in whole:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"`{name}` must be a whole number, at least {least}: got {value!r}.")
        ttl = self.prefix_ttl
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl >= 0):
            raise InputError(f"`prefix_ttl` must be seconds, at least 0, or None: got {ttl!r}.")


@dataclass
class Stats:
    """What an engine has done; seconds by part of a step."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    failures: int = 0
    schedule: float = 0.0
    pack: float = 0.0
    model: float = 0.0
    choose: float = 0.0
    commit: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class Waits:
    """How long requests waited for their first step. `counts[i]`: at most WAITS[i] seconds, and
    longer than the bound before; the last, longer than all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(WAITS) + 1)
        self.seconds = 0.0  # of all together

    def note(self, begun: Iterable[Sequence], now: float) -> None:
        """These begin now. What branches off a request does not wait."""
        for sequence in begun:
            if sequence.choice == 0:
                waited = max(0.0, now - sequence.ask.arrived)
                self.counts[bisect_left(WAITS, waited)] += 1
                self.seconds += waited

    def cumulative(self) -> list[tuple[float, int]]:
        """For each bound, how many waited at most so long; the last bound is infinite."""
        total, found = 0, []
        for bound, count in zip((*WAITS, float("inf")), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found
