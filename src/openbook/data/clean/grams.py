"""How surprising a text is to a small model of good text, and what is too surprising, or not enough, goes (as CCNet).

The model counts runs of bytes: it needs no words, so every language and every text can be measured, and its unit is the
same for all of them, perplexity per byte (2 to 4 for the language it knows, 256 for noise). It is Kneser and Ney's
model, interpolated, in its form of back-off weights (Kneser and Ney 1995; Chen and Goodman 1999, section 4.1.6; for the
use: Wenzek et al. 2020, CCNet).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from openbook.data.clean.excerpt import excerpt
from openbook.data.clean.stored import load_arrays, save_arrays, version
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import ConfigError, DataError
from openbook.native import grams as native

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.float32]
LONGEST = 8  # bytes of a key
BLOCK = 1 << 18  # bytes measured at a time


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Remove documents whose perplexity per byte is out of range; it is written into `meta["perplexity"]`."""

    name: ClassVar[str] = "perplexity"

    model: Path
    """The model's file (`train` of this module)."""
    lowest: float = 0.0
    """The least perplexity that stays: text that repeats itself surprises little."""
    highest: float | None = None
    """The largest perplexity that stays."""
    percentile: float | None = 99.0
    """Where `highest` is none, the largest that stays as a percentile of the good text kept from the model."""
    sample: int = 20_000
    """Characters that are read of a long document: half from its beginning, half from its middle."""

    def __call__(self, document: Document, /) -> Document | Removed:
        model = _loaded(self.model, version(self.model))
        found = model.perplexity(excerpt(document.text, self.sample))
        highest = self.highest
        if highest is None and self.percentile is not None:
            highest = model.at_percentile(self.percentile)
        if found < self.lowest:
            return Removed("perplexity: low", f"{found:.2f} per byte, {self.lowest:.2f} at least")
        if highest is not None and found > highest:
            return Removed("perplexity: high", f"{found:.2f} per byte, {highest:.2f} at most")
        return replace(document, meta={**document.meta, "perplexity": round(found, 3)})


SLOT = np.dtype([("key", np.uint64), ("chance", np.float32), ("weight", np.float32)])
EMPTY = 1.0  # the `chance` of an empty slot: no logarithm of a chance is above 0


@dataclass(frozen=True, slots=True)
class _Table:
    """The n-grams of one length in a hash table of arrays, so that a whole text is looked up at once.

    `key`: the n-gram. `chance`: log of the last byte's chance after the others. `weight`: log of what is left, after
    this n-gram as context, for what has not followed it.
    """

    slots: npt.NDArray[np.void]  # of SLOT; as many as a power of two

    @classmethod
    def of(cls, keys: Keys, chance: Numbers, weight: Numbers) -> _Table:
        size = 1 << max(4, (len(keys) * 3 // 2).bit_length())
        owner = np.full(size, -1, np.int64)
        waiting = np.arange(len(keys))
        step = 0
        while len(waiting):
            at = (_slot(keys[waiting], size) + step) % size
            free = owner[at] < 0
            owner[at[free]] = waiting[free]  # of several that want a slot the last one gets it
            waiting = waiting[owner[at] != waiting]
            step += 1
        slots = np.zeros(size, SLOT)
        slots["chance"] = EMPTY
        used = owner >= 0
        for name, values in (("key", keys), ("chance", chance), ("weight", weight)):
            slots[name][used] = values[owner[used]]
        return cls(slots)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """The slots of `keys`; -1 where one is not in the table."""
        found = np.full(len(keys), -1)
        at = _slot(keys, len(self.slots))
        waiting = np.arange(len(keys))
        while len(waiting):
            slots = self.slots[at[waiting]]
            hit = (slots["chance"] <= 0) & (slots["key"] == keys[waiting])
            found[waiting[hit]] = at[waiting[hit]]
            waiting = waiting[(slots["chance"] <= 0) & ~hit]
            at[waiting] = (at[waiting] + 1) % len(self.slots)
        return found


def _slot(keys: Keys, size: int) -> npt.NDArray[np.int64]:
    mixed = (keys ^ (keys >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(64 - (size.bit_length() - 1))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Grams:
    """A model of byte n-grams. `tables[n-1]` has those of n bytes; before a text stand newlines."""

    tables: tuple[_Table, ...]
    unseen: float  # log of the chance of a byte that stood nowhere
    percentiles: Numbers  # perplexities of held-out good documents, at 0 … 100 per cent

    def perplexity(self, text: str) -> float:
        """Per byte; 1 for the empty text."""
        data = text.encode()
        total = sum(self._chances(block).sum(dtype=np.float64) for block in _blocks(data, len(self.tables)))
        return float(np.exp(-total / max(1, len(data))))

    def at_percentile(self, percentile: float) -> float:
        """The perplexity below which this part of good text lies."""
        return float(np.interp(percentile, np.arange(101), self.percentiles))

    def _chances(self, block: bytes) -> Numbers:
        """The log of each byte's chance after those before it; the first ones of a block are context only."""
        chances = np.zeros(len(block) - len(self.tables) + 1, np.float32)
        tables = [(table.slots.ctypes.data, len(table.slots).bit_length() - 1) for table in self.tables]
        return chances if native.chances(block, tables, self.unseen, chances.ctypes.data) else self._reference(block)

    def _reference(self, block: bytes) -> Numbers:
        keys = _keys(block, len(self.tables))
        chances = np.zeros(len(keys), np.float32)
        left = np.arange(len(keys))  # the bytes of which no n-gram was found yet
        for n, table in reversed(list(enumerate(self.tables, 1))):
            found = table.find(_shorter(keys[left], n))
            hit = found >= 0
            chances[left[hit]] += table.slots["chance"][found[hit]]
            left = left[~hit]
            if n > 1 and len(left):
                shorter = self.tables[n - 2]
                contexts = shorter.find(_shorter(keys[left] >> np.uint64(8), n - 1))
                chances[left] += np.where(contexts >= 0, shorter.slots["weight"][contexts], np.float32(0))
        chances[left] += np.float32(self.unseen)
        return chances

    def save(self, path: Path) -> None:
        """Write one file without pickles, atomically."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "percentiles": self.percentiles,
            "unseen": np.array(self.unseen),
        }
        for n, table in enumerate(self.tables, 1):
            used = table.slots[table.slots["chance"] <= 0]
            arrays |= {f"keys_{n}": used["key"], f"chance_{n}": used["chance"], f"weight_{n}": used["weight"]}
        save_arrays(path, "perplexity", arrays)

    @classmethod
    def load(cls, path: Path) -> Grams:
        """Read what `save` wrote. Raises DataError for another file, or a damaged one."""
        arrays = load_arrays(path, "perplexity")
        try:
            parts = [(f"keys_{n}", f"chance_{n}", f"weight_{n}") for n in range(1, (len(arrays) - 2) // 3 + 1)]
            tables = tuple(_Table.of(arrays[keys], arrays[chance], arrays[weight]) for keys, chance, weight in parts)
            return cls(tables, float(arrays["unseen"]), arrays["percentiles"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"'{path}' is a damaged model of perplexity ({error}): train it again.") from error


@functools.lru_cache(4)
def _loaded(path: Path, _version: tuple[int, int]) -> Grams:
    return Grams.load(path)


# ------------------------------------------------------------------------------------------------ bytes as numbers


def _keys(data: bytes, n: int) -> Keys:
    """Each n bytes in a row as one number, the last byte lowest."""
    values = np.frombuffer(data, np.uint8)
    keys = np.zeros(max(0, len(values) - n + 1), np.uint64)
    for start in range(n):
        keys = keys << np.uint64(8) | values[start : start + len(keys)]
    return keys


def _shorter(keys: Keys, n: int) -> Keys:
    """Their last n bytes."""
    return keys & np.uint64((1 << 8 * n) - 1)


def _blocks(data: bytes, order: int) -> Iterator[bytes]:
    """Parts to be measured, each with the `order - 1` bytes before it."""
    padded = b"\n" * (order - 1) + data
    for start in range(0, len(data), BLOCK):
        yield padded[start : start + BLOCK + order - 1]


# ------------------------------------------------------------------------------------------------ learning


def train(texts: Iterable[str], *, order: int = 5, held_out: int = 20, most_bytes: int = 16 << 20) -> Grams:
    """A model of good text. Every `held_out`-th document is kept from it, to say what perplexities are usual.

    `order`: bytes of its longest n-grams, 2 to 8. At most `most_bytes` are read; learning takes some 40 times that.
    """
    if not 2 <= order <= LONGEST:
        raise ConfigError(f"`order` is 2 to {LONGEST} bytes: got {order}.")
    learned, kept = _read(texts, held_out, most_bytes)
    if not learned:
        raise DataError("No text to learn from: give at least one document.")
    counts = [_counted(np.concatenate([_keys(b"\n" * order + data, order) for data in learned]))]
    for n in range(order - 1, 0, -1):  # a shorter one counts once for each byte that comes before it
        counts.append(_counted(_shorter(counts[-1][0], n)))
    tables: list[_Table] = []
    chance, unseen = np.full(1, -np.log(256)), 0.0
    for n, (keys, times) in enumerate(reversed(counts), 1):
        below = tables[-1].slots["chance"][tables[-1].find(_shorter(keys, n - 1))] if tables else chance
        chance, contexts, left = _interpolated(keys, times, below)
        if tables:
            tables[-1] = _weighed(tables[-1], contexts, left)
        else:
            unseen = float(left[0] - np.log(256))
        tables.append(_Table.of(keys, chance.astype(np.float32), np.zeros(len(keys), np.float32)))
    model = Grams(tuple(tables), unseen, np.zeros(101, np.float32))
    usual = [model.perplexity(text) for text in kept]
    return replace(model, percentiles=np.percentile(usual, np.arange(101)).astype(np.float32))


def _read(texts: Iterable[str], held_out: int, most_bytes: int) -> tuple[list[bytes], list[str]]:
    """What is learned from, and what is kept from it (the first document, where there is one only)."""
    learned: list[bytes] = []
    kept: list[str] = []
    size = 0
    for number, text in enumerate(texts, 1):
        if number % held_out == 0:
            kept.append(text)
            continue
        data = text.encode()[: most_bytes - size]
        learned.append(data)
        size += len(data)
        if size >= most_bytes:
            break
    return learned, kept or [data.decode(errors="replace") for data in learned[:1]]


def _counted(keys: Keys) -> tuple[Keys, npt.NDArray[np.int64]]:
    found, times = np.unique(keys, return_counts=True)
    return found, times.astype(np.int64)


def _interpolated(
    keys: Keys, times: npt.NDArray[np.int64], below: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], Keys, npt.NDArray[np.float64]]:
    """Logs: of the chance of each n-gram's last byte; of what each context leaves to shorter ones, with the contexts.

    `below`: the logs of the chances after one byte less. The discount is n1 / (n1 + 2 n2), kept off 0 and 1.
    """
    once, twice = int((times == 1).sum()), int((times == 2).sum())
    discount = min(0.9, max(0.1, once / max(1, once + 2 * twice)))
    contexts, first, kinds = np.unique(keys >> np.uint64(8), return_index=True, return_counts=True)
    total = np.add.reduceat(times, first)
    left = discount * kinds / total
    of = np.repeat(np.arange(len(contexts)), kinds)
    chance = (times - discount) / total[of] + left[of] * np.exp(below.astype(np.float64))
    return np.log(chance), contexts, np.log(left)


def _weighed(table: _Table, contexts: Keys, left: npt.NDArray[np.float64]) -> _Table:
    """The table with what its n-grams leave as contexts."""
    slots = table.slots.copy()
    found = table.find(contexts)
    slots["weight"][found[found >= 0]] = left[found >= 0]
    return _Table(slots)
