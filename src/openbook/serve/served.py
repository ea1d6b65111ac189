"""What is served: endpoints by name, and what a request's name stands for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from openbook.chat import Message, Sampling, capabilities, require
from openbook.chat.protocols import DEFAULT
from openbook.errors import ConfigError, alike
from openbook.serve.errors import Rejected

P = TypeVar("P")


@runtime_checkable
class Classify(Protocol):
    """Sorts texts into labels."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; a cross-encoder has one."""
        ...

    async def classify(self, texts: list[str | tuple[str, str]]) -> list[list[float]]:
        """Logits over labels, for each text or pair of texts."""
        ...


@runtime_checkable
class Conversing(Protocol):
    """Knows the ids that a prompt begins with."""

    def prompt_of(self, asked: str | Sequence[Mapping[str, Any] | Message]) -> list[int]:
        """The ids of a text with what stands around it, or of a conversation."""
        ...


@runtime_checkable
class Mortal(Protocol):
    """May stop working for good."""

    @property
    def broken(self) -> str | None:
        """Why it does not work any more; None: it does."""
        ...


@dataclass(frozen=True, kw_only=True)
class Served:
    """One name: an endpoint, what its requests default to, and of which model it is an adapter."""

    name: str
    endpoint: object
    defaults: Sampling = DEFAULT
    parent: str | None = None
    context: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def require(self, protocol: type[P]) -> P:
        """Its endpoint, where it can do that; a Refusal (400) that says what it can do where it cannot."""
        return require(self.endpoint, protocol)

    @property
    def can(self) -> tuple[str, ...]:
        """What it can do."""
        return capabilities(self.endpoint)


class Models:
    """All names. They may change while the server runs: a request keeps what it was given."""

    def __init__(self, served: Iterable[Served]) -> None:
        self._by_name: dict[str, Served] = {}
        for one in served:
            self.add(one)

    def add(self, served: Served) -> None:
        """A name more."""
        if served.name in self._by_name:
            raise ConfigError(f"Two models are called {served.name!r}: give each a name of its own (NAME=DIR).")
        self._by_name[served.name] = served

    def swap(self, served: Served) -> Served | None:
        """Puts another endpoint behind a name; what stood there, if anything."""
        before = self._by_name.get(served.name)
        self._by_name[served.name] = served
        return before

    def remove(self, name: str) -> Served:
        """A name less."""
        found = self.find(name)
        del self._by_name[name]
        return found

    def find(self, name: str) -> Served:
        """What a name stands for; 404 where it stands for nothing."""
        if name in self._by_name:
            return self._by_name[name]
        known = ", ".join(self._by_name) or "none"
        raise Rejected(
            404, f"There is no model {name!r:.300}.{alike(name, self._by_name)} Served: {known}.",
            code="model_not_found", param="model",
        )  # fmt: skip

    @property
    def all(self) -> Mapping[str, Served]:
        """Every name."""
        return self._by_name
