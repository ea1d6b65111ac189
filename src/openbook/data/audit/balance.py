"""Weights that bring the parts of a corpus to chosen proportions, changed as little as possible.

Of all weights that reach the targets those are wanted that are nearest to 1 (in relative entropy). Where every unit
belongs to one category of an axis this is raking, or iterative proportional fitting (Deming & Stephan 1940): bring one
axis to its targets, then the next, and again. Where a unit is spread over categories, as a whole source is over topics,
the same step takes the power of its share (generalised iterative scaling, Darroch & Ratcliff 1972):

    weight[k] *= Π over c (target[c] / is[c]) ^ share[k,c]

Weights are held between 1/bound and bound times the weight of the whole, so that no few documents are read without
end; targets that cannot be reached within that are reached as nearly as it goes, and by how much they are missed is
said. Symbols: K units (cells or sources), C categories of an axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook.errors import DataError, UsageError, nearest

ROUNDS = 2000
CLOSE = 1e-9
OTHERS = "(others)"  # the categories of an axis that no target names: they keep their proportions among each other

Floats = NDArray[np.float64]
Shares = Mapping[str, float]  # category → share of a unit; they add up to 1


@dataclass(frozen=True)
class Balance:
    """Weights of units, and the proportions they give."""

    weights: Floats  # [K] the weighted mass is that of the whole
    reached: dict[str, dict[str, float]]  # axis → category → share
    missed: float  # the largest distance of a share from its target


def balance(
    mass: Sequence[float],
    units: Sequence[Mapping[str, Shares]],
    targets: Mapping[str, Mapping[str, float]],
    *,
    bound: float = 5.0,
) -> Balance:
    """Weights of units of this `mass` (words) that bring each axis to its targets.

    `units`: for each, axis → category → share of it. Raises `UsageError` for targets that are no shares, `DataError`
    for categories that are not in the text.
    """
    masses = np.array(mass, np.float64)
    if not len(masses) or not masses.sum() > 0 or not bound >= 1:
        raise UsageError(f"Balancing needs text, and a `bound` of 1 or more: got {masses.sum():g} words and {bound}.")
    tables = {axis: _table(axis, units, masses, wanted) for axis, wanted in targets.items()}
    weights = np.ones(len(masses))
    for _ in range(ROUNDS):
        before = weights
        for shares, wanted, _ in tables.values():
            now = _reached(masses * weights, shares)
            weights = weights * np.exp(shares @ np.log(np.maximum(wanted, 1e-12) / np.maximum(now, 1e-12)))
            weights = _held(weights, masses, bound)
        if np.abs(weights - before).max() < CLOSE:
            break
    found = {axis: _reached(masses * weights, shares) for axis, (shares, _, _) in tables.items()}
    missed = max((float(np.abs(found[axis] - wanted).max()) for axis, (_, wanted, _) in tables.items()), default=0.0)
    named = {axis: dict(zip(tables[axis][2], values.tolist(), strict=True)) for axis, values in found.items()}
    return Balance(weights, named, missed)


def _table(
    axis: str, units: Sequence[Mapping[str, Shares]], masses: Floats, wanted: Mapping[str, float]
) -> tuple[Floats, Floats, list[str]]:
    """The shares of all units in the named categories and the others [K,C], the targets [C], the names."""
    total = sum(wanted.values())
    if any(not 0 <= value <= 1 for value in wanted.values()) or total > 1 + 1e-9:
        raise UsageError(f"Targets of '{axis}' are shares from 0 to 1 that add up to 1 at most: got {dict(wanted)}.")
    there = {category for unit in units for category in unit[axis]}
    for category in wanted:
        if category not in there:
            raise DataError(f"No text is of {axis} '{category}'.{nearest(category, there)} There is: {_listed(there)}.")
    names = [*wanted, OTHERS]
    shares = np.array([[unit[axis].get(name, 0.0) for name in wanted] for unit in units])
    shares = np.column_stack([shares, np.maximum(0, 1 - shares.sum(axis=1))])
    left = max(0.0, 1 - total)
    if not float(masses @ shares[:, -1]) > 1e-12 * float(masses.sum()):
        if left > 1e-6:
            raise UsageError(f"The targets of '{axis}' name all there is, and add up to {total:g}, not to 1.")
        return shares[:, :-1], np.array(list(wanted.values())) / total, names[:-1]
    return shares, np.array([*wanted.values(), left]), names


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "")


def _reached(masses: Floats, shares: Floats) -> Floats:
    return np.asarray(masses @ shares / masses.sum())


def _held(weights: Floats, masses: Floats, bound: float) -> Floats:
    """The weights with the mass of the whole, none outside the bounds."""
    for _ in range(50):
        weights = np.clip(weights * (masses.sum() / float(masses @ weights)), 1 / bound, bound)
        if abs(float(masses @ weights) / float(masses.sum()) - 1) < 1e-12:
            break
    return weights
