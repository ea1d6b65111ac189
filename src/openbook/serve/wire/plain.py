"""Small replies: models, health, what was stopped."""

from __future__ import annotations

import msgspec

from openbook.serve.wire.basics import Said, Trimmed


class ModelOut(Trimmed):
    """A model that is served."""

    id: str
    created: int
    object: str = msgspec.field(default_factory=lambda: "model")
    owned_by: str = msgspec.field(default_factory=lambda: "openbook")
    parent: str | None = None
    max_model_len: int | None = None
    capabilities: list[str] | None = None


class ModelList(Said):
    """All of them."""

    data: list[ModelOut]
    object: str = "list"


class Health(Said):
    """Whether the server lives, or is ready."""

    status: str


class Stopped(Said):
    """A request that was stopped."""

    id: str
    stopped: bool


class RunningOut(Said):
    """A request at work."""

    id: str
    path: str
    model: str
    caller: str
    seconds: float
    chunks: int


class Board(Said):
    """What is at work."""

    data: list[RunningOut]
    object: str = "list"
