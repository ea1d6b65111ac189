"""What is served: endpoints by name, and what a request's name stands for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from openbook.chat import Message, Sampling, capabilities, require
from openbook.chat.protocols import DEFAULT
from openbook.chat.rows import Row, Text
from openbook.errors import ConfigError, Refusal, alike
from openbook.serve.errors import Rejected

P = TypeVar("P")
WRITING = ("Chat", "Complete", "Score")  # what a model that only reads cannot do


@runtime_checkable
class Reading(Protocol):
    """Reads texts as rows of ids, which it takes instead of the texts."""

    def rows(self, texts: Sequence[Text]) -> list[Row]:
        """The row of each text, pair of texts, or list of ids."""
        ...


@runtime_checkable
class Writing(Protocol):
    """Knows whether it writes."""

    @property
    def writes(self) -> bool:
        """False: it only reads."""
        ...


@runtime_checkable
class Embedding(Reading, Protocol):
    """Embeds what it has read."""

    async def embed(self, texts: Sequence[Text]) -> list[list[float]]:
        """One vector of length 1 per text."""
        ...


@runtime_checkable
class Classify(Reading, Protocol):
    """Sorts texts into labels, where it has any."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; a cross-encoder has one."""
        ...

    @property
    def activation(self) -> Literal["sigmoid", "softmax", "none"]:
        """What makes chances of logits."""
        ...

    async def classify(self, texts: Sequence[Text]) -> list[list[float]]:
        """Logits over labels, for each text or pair of texts."""
        ...


@runtime_checkable
class Adaptable(Protocol):
    """Takes adapters while it runs."""

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Adds one."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Takes one away; a Refusal while requests use it."""
        ...

    def adapted(self, name: str) -> object:
        """One as an endpoint."""
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


@runtime_checkable
class Closing(Protocol):
    """Holds what has to be given back."""

    def close(self) -> None:
        """The end of it."""
        ...


Load = Callable[[str, str], Sequence["Served"]]  # a name and a folder → what is served then, under it and beside it


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
        """Its endpoint, where it can do that; a 400 that says what it can do where it cannot."""
        try:
            return require(self.endpoint, protocol)
        except Refusal:
            raise Rejected(
                400,
                f"The model {self.name!r} does not do what this route needs. It can: {', '.join(self.can).lower()}.",
                code="not_supported", param="model",
            ) from None  # fmt: skip

    @property
    def can(self) -> tuple[str, ...]:
        """What it can do."""
        mute = isinstance(self.endpoint, Writing) and not self.endpoint.writes
        can = [name for name in capabilities(self.endpoint) if not mute or name not in WRITING]
        return (*can, *(("Classify",) if self.labels else ()))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that it sorts texts into, if any."""
        return self.endpoint.labels if isinstance(self.endpoint, Classify) else ()

    def adapted(self, name: str) -> Served:
        """An adapter of it that is loaded, as a model of its own."""
        assert isinstance(self.endpoint, Adaptable), "its adapter is loaded"
        return replace(
            self, name=name, endpoint=self.endpoint.adapted(name), parent=self.name, created=int(time.time())
        )


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
