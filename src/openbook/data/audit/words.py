"""The word lists of `words.toml`, whose head says what they can and cannot show."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Words = frozenset[str]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two sets of words of which is asked whether one stands nearer to the words of women than the other."""

    name: str
    first: Words
    second: Words


@dataclass(frozen=True, slots=True)
class Lists:
    """All lists; words are in small letters, but for places."""

    groups: Mapping[str, Mapping[str, Words]]  # axis (gender, religion, age) → group → words
    roles: Mapping[str, Words]  # occupations, adjectives
    contrasts: tuple[Contrast, ...]
    country_of: Mapping[str, str]  # as written → country
    region_of: Mapping[str, str]  # country → region
    topics: Mapping[str, Words]
    stop: Words


@functools.cache
def lists() -> Lists:
    """Read once."""
    tree = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
    country_of, region_of = _places(tree["places"])
    return Lists(
        groups={axis: _sets(groups) for axis, groups in tree["groups"].items()},
        roles=_sets(tree["roles"]),
        contrasts=tuple(
            Contrast(f"{one['of']}, not {one['against']}", _set(one["first"]), _set(one["second"]))
            for one in tree["contrasts"]
        ),
        country_of=country_of,
        region_of=region_of,
        topics=_sets(tree["topics"]),
        stop=_set(tree["other"]["stop"]),
    )


def _set(words: str) -> Words:
    return frozenset(words.split())


def _sets(tree: Mapping[str, Any]) -> dict[str, Words]:
    return {name: _set(words) for name, words in tree.items()}


def _places(tree: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    country_of, region_of = {}, {}
    for region, listed in tree.items():
        for entry in listed.replace("\n", " ").split():
            country, _, also = entry.replace("_", " ").partition(":")
            region_of[country] = region
            for name in (country, *also.split(",")):
                if name:
                    country_of[name] = country
    return country_of, region_of
