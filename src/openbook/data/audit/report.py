"""What the counts say: shares, associations, weights; as plain values for JSON, and as a page to read.

    leaning(word) = log2 (women near it / men near it) - log2 (all words of women / all words of men)

is the difference of the pointwise mutual information of a word with words of women and of men (Church & Hanks 1990):
+1 is twice as often near women as the two kinds of words would give by chance. z says how far from chance, in standard
deviations of the log odds (counts of a half added). For a pair of word sets the effect is that of the word embedding
association test (Caliskan et al. 2017) with leanings in place of cosines: the difference of the sets' means over the
deviation of all; p is the share of random parts of the same sizes that differ as much.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openbook.data.audit.balance import Balance, balance
from openbook.data.audit.count import AXES, Counts, Place, bucket, length_of
from openbook.data.audit.topics import find_topics
from openbook.data.audit.words import Words, lists
from openbook.errors import UsageError, nearest

FEWEST = 10  # times a word stands near words of any gender before its leaning is said
PARTS = 2000  # random parts of a pair of sets
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def report(counts: Counts, *, topics: int = 12, seed: int = 0) -> dict[str, Any]:
    """Everything the counts say, as JSON can say it."""
    words = max(1, counts.size.words)
    region_of = lists().region_of
    regions: Counter[str] = Counter()
    for country, count in counts.countries.items():
        regions[region_of[country]] += count
    leanings = {name: _leanings(counts, of) for name, of in lists().roles.items()}
    return {
        "format": "openbook-audit",
        "documents": counts.size.documents, "words": counts.size.words, "sentences": counts.size.sentences,
        "grade": _round(counts.size.grade),
        "lengths": {f"{part:.0%}": _quantile(counts.lengths, part) for part in QUANTILES},
        "sources": {
            name: {"documents": size.documents, "words": size.words, "share": size.words / words,
                   "grade": _round(size.grade)}
            for name, size in sorted(counts.sources.items(), key=lambda pair: -pair[1].words)
        },
        "shares": {axis: shares_of(counts.cells, axis) for axis in AXES},
        "groups": {axis: {group: _group(counts, axis, group) for group in of} for axis, of in lists().groups.items()},
        "near_women_or_men": leanings,
        "contrasts": [_contrast(counts, c.name, c.first, c.second, seed) for c in lists().contrasts],
        "countries": dict(counts.countries.most_common()),
        "regions": dict(regions.most_common()),
        "decades": {str(decade): count for decade, count in sorted(counts.decades.items())},
        "topics_found": [
            {"words": list(topic.words), "share": topic.share}
            for topic in find_topics(counts.sample, topics, seed=seed)
        ],
    }  # fmt: skip


def shares_of(cells: Mapping[Place, Any], axis: str) -> dict[str, float]:
    """The parts of the words that fall into each category of an axis, the largest first."""
    found: Counter[str] = Counter()
    for place, size in cells.items():
        found[place.name((axis,))] += size.words
    total = max(1, found.total())
    return {name: count / total for name, count in found.most_common()}


def weigh(
    counts: Counts, targets: Mapping[str, Mapping[str, float]], bound: float
) -> tuple[tuple[str, ...], list[tuple[Place, float]], Balance, Balance]:
    """Weights for `targets` (axis → category → share of the words): the axes in question, (cell, weight) of each cell,
    and the balance by cells, and by sources as a whole. Raises `UsageError`, `DataError`: see `balance`.
    """
    for axis in targets:
        if axis not in AXES:
            raise UsageError(f"There is no axis '{axis}' to balance.{nearest(axis, AXES)} There are {', '.join(AXES)}.")
    places = [place for place, size in counts.cells.items() if size.words]
    masses = [counts.cells[place].words for place in places]
    by_cell = balance(masses, [_one(place) for place in places], targets, bound=bound)
    names = [name for name, size in counts.sources.items() if size.words]
    spread = _spread(counts)
    by_source = balance(
        [counts.sources[name].words for name in names], [spread[name] for name in names], targets, bound=bound
    )
    axes = tuple(axis for axis in AXES if axis in targets or axis == "source")
    return axes, list(zip(places, by_cell.weights.tolist(), strict=True)), by_cell, by_source


def weights(counts: Counts, targets: Mapping[str, Mapping[str, float]], bound: float) -> dict[str, Any]:
    """`weigh` as JSON can say it. `mixture`, `recipe`: weights of whole sources for `[[data.sources]]`."""
    _, cells, by_cell, by_source = weigh(counts, targets, bound)
    names = [name for name, size in counts.sources.items() if size.words]
    masses = np.array([counts.sources[name].words for name in names]) * by_source.weights
    mixture = dict(zip(names, (masses / masses.sum()).tolist(), strict=True))
    listed = [
        {**{axis: place.name((axis,)) for axis in AXES}, "words": counts.cells[place].words, "weight": weight}
        for place, weight in sorted(cells, key=lambda pair: (-counts.cells[pair[0]].words, pair[0].name(AXES)))
    ]
    return {
        "targets": {axis: dict(of) for axis, of in targets.items()},
        "bound": bound,
        "by_cell": {"reached": by_cell.reached, "missed": by_cell.missed, "cells": listed},
        "by_source": {
            "reached": by_source.reached,
            "missed": by_source.missed,
            "mixture": mixture,
            "recipe": recipe_lines(counts, mixture),
        },
    }


def recipe_lines(counts: Counts, mixture: Mapping[str, float]) -> str:
    """The sources of a training recipe with these weights."""
    lines = []
    for name, weight in mixture.items():
        files = sorted(counts.files[name])
        path = files[0] if len(files) == 1 else str(Path(files[0]).parent)
        lines.append(f"[[data.sources]]\nname = {json.dumps(name)}\npath = {json.dumps(path)}\nweight = {weight:.6g}\n")
    return "\n".join(lines)


def _one(place: Place) -> dict[str, dict[str, float]]:
    return {axis: {place.name((axis,)): 1.0} for axis in AXES}


def _spread(counts: Counts) -> dict[str, dict[str, dict[str, float]]]:
    """source → axis → category → share of its words."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: {axis: {} for axis in AXES})
    for place, size in counts.cells.items():
        for axis in AXES:
            of = found[place.source][axis]
            name = place.name((axis,))
            of[name] = of.get(name, 0.0) + size.words / max(1, counts.sources[place.source].words)
    return found


def _group(counts: Counts, axis: str, group: str) -> dict[str, Any]:
    words = Counter({word: n for (a, g, word), n in counts.groups.items() if (a, g) == (axis, group)})
    total = words.total()
    return {
        "words": total,
        "per_million": _round(1e6 * total / max(1, counts.size.words)),
        "documents": counts.mentions[axis, group],
        "most": dict(words.most_common(8)),
    }


def _leanings(counts: Counts, of: Words) -> list[dict[str, Any]]:
    """Words that stand near words of women or men often enough, from women's to men's."""
    genders = _genders(counts)
    found = []
    for word in of:
        women, men = counts.near[word, "women"], counts.near[word, "men"]
        if women + men >= FEWEST:
            leaning, z = _leaning(women, men, genders)
            found.append({"word": word, "women": women, "men": men, "leaning": _round(leaning), "z": _round(z)})
    return sorted(found, key=lambda one: (-float(one["leaning"] or 0), str(one["word"])))


def _genders(counts: Counts) -> tuple[int, int]:
    """All words of women and of men."""
    sums: Counter[str] = Counter()
    for (axis, group, _), count in counts.groups.items():
        if axis == "gender":
            sums[group] += count
    return sums["women"], sums["men"]


def _leaning(women: int, men: int, genders: tuple[int, int]) -> tuple[float, float]:
    """The leaning and its z."""
    odds = math.log((women + 0.5) / (men + 0.5)) - math.log((genders[0] + 0.5) / (genders[1] + 0.5))
    return odds / math.log(2), odds / math.sqrt(1 / (women + 0.5) + 1 / (men + 0.5))


def _contrast(counts: Counts, name: str, first: Words, second: Words, seed: int) -> dict[str, Any]:
    """The effect of a pair of sets; None where one of them has less than three words that are often enough there."""
    genders = _genders(counts)

    def leanings(of: Iterable[str]) -> list[float]:
        pairs = [(counts.near[word, "women"], counts.near[word, "men"]) for word in sorted(of)]
        return [_leaning(women, men, genders)[0] for women, men in pairs if women + men >= FEWEST]

    one, other = leanings(first), leanings(second)
    found: dict[str, Any] = {"name": name, "words": [len(one), len(other)], "effect": None, "p": None}
    if min(len(one), len(other)) < 3:
        return found
    both = np.array(one + other)
    spread = float(both.std(ddof=1))
    if spread > 0:
        apart = both[: len(one)].mean() - both[len(one) :].mean()
        random = np.random.default_rng(seed)
        mixed = random.permuted(np.tile(both, (PARTS, 1)), axis=1)
        chance = mixed[:, : len(one)].mean(axis=1) - mixed[:, len(one) :].mean(axis=1)
        found["effect"] = _round(float(apart) / spread)
        found["p"] = _round(float((1 + (np.abs(chance) >= abs(apart) - 1e-12).sum()) / (1 + PARTS)), 4)
    return found


def _quantile(lengths: Counter[int], part: float) -> int:
    """A quantile of the lengths, in words, to 7%: the middle of its bucket."""
    left = part * lengths.total()
    for number in sorted(lengths):
        left -= lengths[number]
        if left <= 0:
            return 0 if number == bucket(0) else round(math.sqrt(length_of(number) * length_of(number + 1)))
    return 0


def _round(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


# ------------------------------------------------------------------------------------------------ to read


def page(found: Mapping[str, Any]) -> str:
    """The report as text."""
    lengths = ", ".join(f"{part} {words:,}" for part, words in found["lengths"].items())
    parts = [
        f"{found['documents']:,} documents, {found['words']:,} words, reading grade {found['grade']}; "
        f"words of a document: {lengths}",
        _table("sources", {name: f"{100 * one['share']:5.1f}%  {one['words']:>12,} words, grade {one['grade']}"
                           for name, one in found["sources"].items()}),
        *(_table(axis, {name: f"{share:6.1%}" for name, share in found["shares"][axis].items()})
          for axis in AXES if axis != "source"),
        *(_table(axis, {
            group: f"{one['per_million']:>9,.0f} in a million words, {one['documents']:,} documents; "
            f"{', '.join(list(one['most'])[:5])}" for group, one in groups.items()})
          for axis, groups in found["groups"].items()),
    ]  # fmt: skip
    for name, ranked in found["near_women_or_men"].items():
        sure = [one for one in ranked if abs(one["z"]) > 2]
        women, men = [one for one in sure if one["leaning"] > 0][:8], [one for one in sure if one["leaning"] < 0][-8:]
        parts.append(_table(f"{name} nearer to words of", {"women": _said(women), "men": _said(men[::-1])}))
    contrasts = {
        one["name"]: f"effect {one['effect']:+.2f}, p {one['p']:.3f}" if one["effect"] is not None else "too few words"
        for one in found["contrasts"]
    }
    parts.append(_table("women rather than men stand near", contrasts))
    places = max(1, sum(found["regions"].values()))
    parts.append(_table("regions", {name: f"{count / places:6.1%}" for name, count in found["regions"].items()}))
    parts.append(
        "countries: " + ", ".join(f"{name} {count:,}" for name, count in list(found["countries"].items())[:15])
    )
    years: Counter[int] = Counter()
    for decade, count in found["decades"].items():
        years[int(decade) if int(decade) >= 1900 else int(decade) // 100 * 100] += count
    parts.append("years: " + (", ".join(f"{year}s {count:,}" for year, count in sorted(years.items())) or "none"))
    topics = {", ".join(one["words"]): f"{one['share']:6.1%}" for one in found["topics_found"]}
    parts.append(
        "topics found, by their own words (of a sample):\n" + "\n".join(f"  {s}  {w}" for w, s in topics.items())
    )
    if "weights" in found:
        parts.append(_weights_page(found["weights"]))
    return "\n\n".join(parts)


def _weights_page(found: Mapping[str, Any]) -> str:
    by_cell, by_source = found["by_cell"], found["by_source"]
    reached = "; ".join(
        f"{axis} " + ", ".join(f"{name} {share:.1%}" for name, share in of.items())
        for axis, of in by_cell["reached"].items()
    )
    mixture = {name: f"{share:6.1%}" for name, share in by_source["mixture"].items()}
    return (
        f"balanced by cells: {reached}; the farthest from its target is off by {by_cell['missed']:.2%}\n"
        f"balanced by whole sources, off by {by_source['missed']:.2%}:\n"
        f"{_table('mixture', mixture)}\n\n{by_source['recipe']}"
    )


def _said(ranked: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['word']} {one['leaning']:+.1f}" for one in ranked) or "none is sure"


def _table(title: str, rows: Mapping[str, str]) -> str:
    wide = max([len(title), *map(len, rows)]) if rows else 0
    shown = list(rows.items())[:20]
    more = [f"  … {len(rows) - 20} more"] if len(rows) > 20 else []
    return "\n".join([title, *(f"  {name:<{wide}}  {value}" for name, value in shown), *more])
