"""How an engine shares one model, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass, fields

from openbook.generate.store import PAGE


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
