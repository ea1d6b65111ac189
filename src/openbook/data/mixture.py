"""Several prepared texts as one: each row of the training is a row of one source, in the proportions asked for.

    share of a source ~ base ^ (1 / temperature)     base: its weight, or its tokens where no source has a weight

Temperature 1 is in proportion, above it small sources come more often (Devlin's multilingual BERT and mT5, Xue et al.
2021 §3.2, write α = 1/T), and without end all come equally often. `turns.py` deals the rows: at no row is a source a
whole row away from what it was due. Within its rows a source is read like a text alone, epoch after epoch, each
shuffled anew. `epochs` caps how often a source is read; from there on the others share its place. `changes` move the
weights as the training goes on, at a row or in a line to it.

Everything stays a pure function of the seed and of the row's number, so a mixture is read, shared among ranks, resumed
and measured like a `Loader`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from openbook.data.batch import Batch, as_batch
from openbook.data.heldout import HeldOut, Together
from openbook.data.loader import WORTHWHILE, Curriculum, Loader, Packing, Reader, too_often
from openbook.data.packing import Ints, Rows
from openbook.data.shards import Shards
from openbook.data.turns import Turns, course
from openbook.errors import DataError, UsageError, nearest


@dataclass(frozen=True, kw_only=True)
class Source:
    """One prepared text of a mixture."""

    name: str
    shards: Shards
    weight: float | None = None  # None: its tokens to train on
    epochs: float | None = None  # read at most so often; None: as often as its turn comes


@dataclass(frozen=True, kw_only=True)
class Change:
    """Weights by the names of the sources, from this row of the training on; a source that is not named has none."""

    row: int
    weights: Mapping[str, float]


class Several(Reader):
    """Rows of several texts in one order: `turns` says whose each row is."""

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self.loaders = dict(loaders)
        self.begins: Ints = np.cumsum([0, *(loader.rows for loader in loaders.values())], dtype=np.int64)
        self.rows = int(self.begins[-1])
        self.targets = sum(loader.targets for loader in loaders.values())

    def parts(self) -> Mapping[str, Loader]:
        return self.loaders

    def numbers(self, start: int, rows: int) -> Ints:
        """Rows of the layouts of all sources, counted on from source to source."""
        turns, numbers = self._numbers(start, rows)
        return self.begins[turns] + numbers

    def _numbers(self, start: int, rows: int) -> tuple[Ints, Ints]:
        """The source of each row, and which row of its layout it is."""
        turns, places = self.turns(start, rows)
        numbers = np.zeros(rows, np.int64)
        for source, loader in enumerate(self.loaders.values()):
            mine = np.flatnonzero(turns == source)
            if len(mine):  # a source's rows follow each other
                numbers[mine] = loader.numbers(int(places[mine[0]]), len(mine))
        return turns, numbers

    def batch(self, start: int, rows: int) -> Batch:
        turns, numbers = self._numbers(start, rows)
        filled: dict[str, Any] = {}
        for source, loader in enumerate(self.loaders.values()):
            mine = np.flatnonzero(turns == source)
            if len(mine):
                part = loader.layout.fill(loader.spans, numbers[mine])
                for field in fields(part):
                    values = getattr(part, field.name)
                    if values is not None:
                        filled.setdefault(field.name, np.zeros((rows, values.shape[1]), np.int64))[mine] = values
        return as_batch(Rows(filled["ids"], filled["targets"], filled.get("positions"), filled.get("segments")))


class Mixture(Several):
    """Training batches from several sources; `block` and what follows are those of `Loader`, the same for all.

    `linear`: between two changes (and from the first weights, at row 0, to the first change) weights move in a line;
    otherwise they stay until the next. rows, targets: one pass over every source.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        block: int,
        seed: int = 0,
        packing: Packing = "best-fit",
        document_mask: bool = True,
        pad: int = 0,
        curriculum: Curriculum = "none",
        blur: float = 0.3,
        temperature: float = 1.0,
        changes: Sequence[Change] = (),
        linear: bool = False,
    ) -> None:
        _check(sources, temperature, changes)
        self.sources, self.temperature = tuple(sources), temperature
        self.changes, self.linear = tuple(changes), linear
        loaders: dict[str, Loader] = {}
        for number, source in enumerate(sources):
            try:
                loaders[source.name] = Loader(
                    source.shards, block=block, seed=seed + 1_000_003 * number, packing=packing,
                    document_mask=document_mask, pad=pad, curriculum=curriculum, blur=blur,
                )  # fmt: skip
            except DataError as error:
                raise DataError(f"Source '{source.name}': {error}") from error
        super().__init__(loaders)
        self._limits = [
            None if source.epochs is None else max(1, round(source.epochs * loader.rows))
            for source, loader in zip(sources, self.loaders.values(), strict=True)
        ]
        self._turns = Turns(course(self._points(), linear=linear), self._limits)

    def _points(self) -> list[tuple[int, list[float]]]:
        """The weights at the beginning and at every change, (row, weights)."""
        base = [
            float(loader.spans.tokens) if source.weight is None else source.weight
            for source, loader in zip(self.sources, self.loaders.values(), strict=True)
        ]
        highest = max(base)
        points = [(0, [(one / highest) ** (1 / self.temperature) if one else 0.0 for one in base])]
        for change in self.changes:
            point = (change.row, [float(change.weights.get(name, 0.0)) for name in self.loaders])
            points = [point] if change.row == 0 else [*points, point]
        return points

    @property
    def shares(self) -> dict[str, float]:
        """The part of the first rows that each source is asked for."""
        weights = self._turns.course.at(np.zeros(1, np.int64))[0]
        return dict(zip(self.loaders, weights.tolist(), strict=True))

    def turns(self, start: int, rows: int) -> tuple[Ints, Ints]:
        if start < 0 or rows < 1:
            raise UsageError(
                f"A batch begins at row 0 or later and has at least 1 row: got start={start}, rows={rows}."
            )
        return self._turns.of(start, rows)

    def held_out(self, rows: int, *, limit: int | None = None) -> Together[HeldOut]:
        """Of every source that has some, with equal parts of the `limit`."""
        part = None if limit is None else max(1, limit // len(self.loaders))
        found = {name: loader.held_out(rows, limit=part) for name, loader in self.loaders.items()}
        return Together({name: held for name, held in found.items() if len(held)})

    def seen(self, row: int) -> dict[str, float]:
        taken = self._turns.taken(row).tolist()
        return {name: count / loader.rows for (name, loader), count in zip(self.loaders.items(), taken, strict=True)}

    def warnings(self, row: int) -> list[str]:
        """What to know of a training of `row` rows: sources that are used up, or read more often than is worth it.

        Raises `DataError` when all sources together do not have so many rows.
        """
        found = []
        for source, limit, (name, epochs) in zip(self.sources, self._limits, self.seen(row).items(), strict=True):
            rows = self.loaders[name].rows
            if limit is not None and round(epochs * rows) >= limit:
                found.append(
                    f"Source '{name}' has had its {source.epochs:g} epochs before the training ends; from there on the "
                    "others share its place."
                )
            if epochs > WORTHWHILE:
                often = too_often(f"Source '{name}'", epochs)
                found.append(f"{often} Give it a lower weight, `epochs` or more text.")
        return found

    def identity(self) -> dict[str, Any]:
        first = next(iter(self.loaders.values())).identity()
        parts = {
            name: {"data": loader.shards.fingerprint, "rows": loader.rows, "weight": source.weight, "limit": limit}
            for source, limit, (name, loader) in zip(self.sources, self._limits, self.loaders.items(), strict=True)
        }
        changes = [[change.row, dict(change.weights)] for change in self.changes]
        mixed = {"sources": parts, "temperature": self.temperature, "changes": changes, "linear": self.linear}
        return {**first, "data": "a mixture", "rows": self.rows, **mixed}


def _check(sources: Sequence[Source], temperature: float, changes: Sequence[Change]) -> None:
    """Refuse what cannot be mixed."""
    names = [source.name for source in sources]
    if not sources or len(set(names)) != len(names):
        raise UsageError(f"A mixture has one source or more, each with a name of its own: got {names}.")
    weights = [source.weight for source in sources]
    if None in weights and any(weight is not None for weight in weights):
        raise UsageError(f"Give every source a weight, or none (then its tokens count): got {weights} for {names}.")
    if not temperature > 0:
        raise UsageError(f"`temperature` must be above 0: got {temperature}. 1 keeps the proportions.")
    rows = [change.row for change in changes]
    if rows != sorted(set(rows)) or any(row < 0 for row in rows):
        raise UsageError(f"Changes of weights come at rising rows from 0 on: got {rows}.")
    for where, given in [("the sources", [w for w in weights if w is not None] or [1.0])] + [
        (f"row {change.row:,}", list(change.weights.values())) for change in changes
    ]:
        if any(not (math.isfinite(one) and one >= 0) for one in given) or not sum(given) > 0:
            raise UsageError(f"Weights are 0 or more, and one is above 0: got {given} at {where}.")
    for change in changes:
        for name in change.weights:
            if name not in names:
                raise UsageError(
                    f"A change of weights names a source '{name}' that there is not.{nearest(name, names)}"
                )
    for source in sources:
        if source.epochs is not None and not 0 < source.epochs < math.inf:
            raise UsageError(f"`epochs` of source '{source.name}' must be above 0: got {source.epochs}.")
        one, first = source.shards, sources[0].shards
        if (one.tokenizer, one.vocab, one.bos, one.eos) != (first.tokenizer, first.vocab, first.bos, first.eos):
            raise DataError(
                f"Source '{source.name}' was prepared with another tokenizer than '{names[0]}': ids would not mean the "
                "same. Prepare them with one tokenizer."
            )
