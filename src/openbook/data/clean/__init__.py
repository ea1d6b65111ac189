"""All that is done to one document: repair, language, rules, models of good text, personal data.

A step (data/steps.py) is its own configuration, a frozen dataclass of plain values: a recipe in TOML can write it, it
can be pickled, and it is called with a document. What it reads from files is read once per process, at first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from openbook.config import from_tree
from openbook.data.clean.classify import Quality
from openbook.data.clean.grams import Perplexity
from openbook.data.clean.language import Language
from openbook.data.clean.repair import Repair
from openbook.data.clean.rules import C4, Rules
from openbook.data.clean.scrub import Scrub
from openbook.data.steps import Step
from openbook.errors import ConfigError, nearest

# Name → the class that is its configuration and the step, in the order in which they are best done.
_ALL: tuple[type[Step], ...] = (Repair, Language, C4, Rules, Perplexity, Quality, Scrub)
STEPS: Mapping[str, type[Step]] = MappingProxyType({str(step.name): step for step in _ALL})


def build(name: str, options: Mapping[str, Any], source: str = "the recipe") -> Step:
    """The step of this name, from plain values such as a TOML table. Raises ConfigError that names what is wrong."""
    if name not in STEPS:
        raise ConfigError(f"No step of cleaning is called {name!r} ({source}).{nearest(name, STEPS)}")
    return from_tree(STEPS[name], options, source=f"step {name!r} of {source}")
