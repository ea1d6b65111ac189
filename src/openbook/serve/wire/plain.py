"""Small replies: models, health, what was stopped."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from openbook.serve.wire.basics import Asked, Name, Said, Trimmed


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
    """A request at work. `tokens`: written so far, as far as its deltas tell; `chunks`: sent so far."""

    id: str
    path: str
    model: str
    caller: str
    seconds: float
    tokens: int
    chunks: int


class Board(Said):
    """What is at work."""

    data: list[RunningOut]
    object: str = "list"


class LoadAdapter(Asked):
    """A LoRA folder on the server's machine, to be served as a model of its own."""

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    model: Name | None = None
    """Of which model; not needed where one takes adapters."""


class SwapModel(Asked):
    """A model folder on the server's machine, to be served under a name that is there."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]


class UnloadAdapter(Asked):
    """An adapter that is not wanted any more."""

    lora_name: Name
