"""The sources of a recipe: what is mixed, in which proportions, and the reader that training takes its rows from.

[[data.sources]]                       [data.schedule]
path = "corpus/tinystories.jsonl"      shape = "linear"
weight = 3
[[data.sources]]                       [[data.schedule.changes]]
path = "prepared/web"                  at = 0.8
epochs = 4                             weights = {tinystories = 1, web = 4}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openbook.errors import ConfigError, nearest

NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class SourcePart:
    """One of several texts that are mixed."""

    path: str
    """A folder that `openbook data prepare` wrote; or a file, folder or pattern of text, which the run prepares."""
    name: str = ""
    """What it is called in weights and reports. Empty: the last part of `path`, without endings."""
    weight: float | None = None
    """Its share, in proportion to the others'. None, for all of them: its tokens."""
    epochs: float | None = None
    """Read at most so often; then the others share its place. None: without limit."""

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or Path(self.path).name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class ChangePart:
    """The weights from one place of the run on."""

    at: float
    """Below 1: a share of the run, which needs `train.steps`; from 1 on: a row."""
    weights: Mapping[str, float]
    """By the names of the sources; one that is not named has none."""


@dataclass(frozen=True, kw_only=True)
class MixPart:
    """How weights change over the run."""

    shape: Literal["steps", "linear"] = "steps"
    """steps: they stay until the next change; linear: they move in a line from change to change."""
    changes: tuple[ChangePart, ...] = ()


def check_sources(sources: Sequence[SourcePart], schedule: MixPart) -> None:
    """Refuse names that are no names, come twice, or are of no source."""
    names = [source.called for source in sources]
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            why = "comes twice" if names.count(name) > 1 else "is no name (letters, digits, -, _ and .)"
            raise ConfigError(f"The source name '{name}' {why}: give each of [[data.sources]] a `name` of its own.")
    if len({source.weight is None for source in sources}) > 1:
        raise ConfigError("Give each of [[data.sources]] a weight, or none of them: then their tokens count.")
    for change in schedule.changes:
        for name in change.weights:
            if name not in names:
                raise ConfigError(f"[data.schedule] names a source '{name}' that there is not.{nearest(name, names)}")
        if not 0 <= change.at < float("inf"):
            raise ConfigError(f"`at` in [data.schedule] is a share of the run or a row, 0 or more: got {change.at}.")
