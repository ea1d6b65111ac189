"""Rows in an order that is a pure function of the seed and of a row's number; nothing to remember but that number.

Rows are counted through the whole training, 0, 1, 2, …: an epoch is `Loader.rows` of them, and each epoch has its own
shuffle. With `curriculum="length"` the first epoch goes from short texts to long ones (Bengio et al. 2009; of lengths:
Platanios et al. 2019, Li et al. 2022): rows are sorted by the mean length of their texts, blurred by chance,

    place in the epoch ~ (1 - blur) · rank / rows + blur · chance

and every row still comes once an epoch. What several sources share is in `mixture.py`. The training loop holds the
counter: a step of `rows` rows takes `batch(counter, rows)` and adds `rows`, so the batch size may change at any step.
Ranks and micro-batches divide a step with `share`, again by row number, and together they see exactly what one
process with one batch sees.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openbook.data.batch import Batch, as_batch
from openbook.data.heldout import HeldOut, Together
from openbook.data.packing import Ints, Layout, Stream, best_fit
from openbook.data.shards import Shards
from openbook.errors import DataError, UsageError

Packing = Literal["best-fit", "stream"]
Curriculum = Literal["none", "length"]
WORTHWHILE = 4  # epochs of the same text that teach nearly as much as new text (Muennighoff et al. 2023)


def share(start: int, rows: int, part: int, parts: int) -> tuple[int, int]:
    """The rows (first, how many) of `part` of `parts`: in order, disjoint, all of them, sizes at most 1 apart.

    For ranks, then again for the micro-batches of a rank. Raises `UsageError` when there are fewer rows than parts.
    """
    if not 0 <= part < parts:
        raise UsageError(f"`part` must be from 0 to {parts - 1}: got {part}.")
    if rows < parts:
        raise UsageError(f"{rows} rows cannot be shared among {parts}: use at least {parts} rows per step.")
    low, high = rows * part // parts, rows * (part + 1) // parts
    return start + low, high - low


def too_often(what: str, epochs: float) -> str:
    """What is said of a text that is read more often than is worth it."""
    return f"{what} is read {epochs:.1f} times: beyond {WORTHWHILE} epochs the same text teaches less and less."


class Reader(ABC):
    """Training batches by row number: what a `Loader` of one text and a `Mixture` of several have in common.

    rows        rows of one epoch        targets     predicted tokens of one epoch
    """

    rows: int
    targets: int

    @abstractmethod
    def numbers(self, start: int, rows: int) -> Ints:
        """Which rows of the text stand at `start` … `start+rows-1` of the training, [rows]."""

    @abstractmethod
    def batch(self, start: int, rows: int) -> Batch:
        """Rows `start` … `start+rows-1` of the training as a `Batch` on the CPU. Safe to call from several threads."""

    @abstractmethod
    def held_out(self, rows: int, *, limit: int | None = None) -> HeldOut | Together[HeldOut]:
        """Batches of `rows` rows of the held-out text, about `limit` tokens of it at most."""

    @abstractmethod
    def parts(self) -> Mapping[str, Loader]:
        """The texts this reads, by name."""

    @abstractmethod
    def turns(self, start: int, rows: int) -> tuple[Ints, Ints]:
        """Of which of `parts` rows `start` … `start+rows-1` are, and how manieth row of that text each is."""

    @abstractmethod
    def seen(self, row: int) -> dict[str, float]:
        """The epochs of each text that the rows before `row` are."""

    @abstractmethod
    def warnings(self, row: int) -> list[str]:
        """What to know of a training of `row` rows. Raises `DataError` when there are not so many."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides which row stands where: a checkpoint of other data is refused by it."""

    def epoch(self, row: int) -> float:
        """How many epochs row number `row` is into the training."""
        return row / self.rows

    def state(self, row: int) -> dict[str, Any]:
        """What a checkpoint keeps: the row counter, and what it counts."""
        return {"row": int(row), **self.identity()}

    def restore(self, state: Mapping[str, Any]) -> int:
        """The row counter of a checkpoint. Raises `DataError` when its data, seed or layout are not these."""
        mine = self.identity()
        keys = {**mine, **state}.keys() - {"row"}
        wrong = [
            f"{key} was {state.get(key)!r} and is {mine.get(key)!r}"
            for key in sorted(keys)
            if state.get(key) != mine.get(key)
        ]
        if wrong:
            raise DataError(
                f"The checkpoint was trained on other data: {'; '.join(wrong)}. "
                "Resume with the same text, tokenizer and data settings, or start a new run in another --out."
            )
        row = state.get("row")
        if not isinstance(row, int) or row < 0:
            raise DataError(f"The checkpoint's place in the data is damaged: row={row!r}.")
        return row

    @contextmanager
    def ahead(self, plan: Iterable[tuple[int, int]], *, depth: int = 2, pin: bool = False) -> Iterator[Iterator[Batch]]:
        """Batches for `plan`'s (start, rows), made by a thread up to `depth` ahead; an error in it is raised here.

        with loader.ahead((row, 32) for row in range(0, 32_000, 32)) as batches: for batch in batches: …
        """
        made: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
        stop = threading.Event()

        def offer(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    made.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for start, rows in plan:
                    if stop.is_set():
                        return
                    batch = self.batch(start, rows)
                    offer(batch.pinned() if pin else batch)
                offer(None)
            except BaseException as error:
                offer(error)

        def take() -> Iterator[Batch]:
            while (item := made.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item

        thread = threading.Thread(target=work, name="openbook-loader", daemon=True)
        thread.start()
        try:
            yield take()
        finally:
            stop.set()
            thread.join()


class Loader(Reader):
    """Training batches of `block` tokens a row from prepared text.

    packing="best-fit"                   whole documents, several to a row, padding at the end
    packing="stream"                     all text in one stream, no padding
    document_mask=False (stream only)    batches without segments and positions: text runs on over documents' borders,
                                         plain causal attention, the fastest training
    curriculum="length", blur=0.3        the first epoch goes from short texts to long ones
    """

    def __init__(
        self,
        shards: Shards,
        *,
        block: int,
        seed: int = 0,
        packing: Packing = "best-fit",
        document_mask: bool = True,
        pad: int = 0,
        curriculum: Curriculum = "none",
        blur: float = 0.3,
    ) -> None:
        if block < 2:
            raise UsageError(f"`block` must be at least 2 tokens: got {block}.")
        if packing not in ("best-fit", "stream"):
            raise UsageError(f"`packing` must be 'best-fit' or 'stream': got {packing!r}.")
        if packing == "best-fit" and not document_mask:
            raise UsageError("`document_mask=False` needs packing='stream': best-fit rows hold padding.")
        if curriculum not in ("none", "length") or not 0 <= blur <= 1:
            raise UsageError(
                f"`curriculum` must be 'none' or 'length' and `blur` from 0 to 1: got {curriculum!r} and {blur}."
            )
        self.shards, self.block, self.seed = shards, block, seed
        self.curriculum, self.blur = curriculum, blur
        self.packing, self.document_mask = packing, document_mask
        self.spans = shards.spans(held_out=False)
        if self.spans.tokens <= block:
            raise DataError(
                f"The text is smaller than one block: {self.spans.tokens:,} tokens to train on "
                f"({shards.tokens - self.spans.tokens:,} more are held out), `block` is {block:,}. "
                f"Give more text, or set `block` to {max(2, self.spans.tokens // 8)} or less."
            )
        self.layout: Layout
        if packing == "stream":
            self.layout = Stream(block, self.spans.bounds, document_mask)
        else:
            self.layout = best_fit(self.spans.bounds, block, pad)
        self.rows = self.layout.rows
        self.targets = self.layout.targets
        self._order: tuple[int, Ints] | None = None  # the shuffle of one epoch; only a memory, always recomputable

    def numbers(self, start: int, rows: int) -> Ints:
        """Which rows of the layout stand at `start` … `start+rows-1` of the training, [rows]."""
        if start < 0 or rows < 1:
            raise UsageError(
                f"A batch begins at row 0 or later and has at least 1 row: got start={start}, rows={rows}."
            )
        parts = []
        while rows:
            epoch, at = divmod(start, self.rows)
            taken = min(rows, self.rows - at)
            parts.append(self._epoch(epoch)[at : at + taken])
            start, rows = start + taken, rows - taken
        return np.concatenate(parts)

    def batch(self, start: int, rows: int) -> Batch:
        """Rows `start` … `start+rows-1` of the training as a `Batch` on the CPU. Safe to call from several threads."""
        return as_batch(self.layout.fill(self.spans, self.numbers(start, rows)))

    def held_out(self, rows: int, *, limit: int | None = None) -> HeldOut:
        """Batches of the held-out text in this loader's layout; see `HeldOut`."""
        return HeldOut(self.shards, block=self.block, rows=rows, document_mask=self.document_mask, limit=limit)

    def parts(self) -> Mapping[str, Loader]:
        return {self.shards.folder.name: self}

    def turns(self, start: int, rows: int) -> tuple[Ints, Ints]:
        return np.zeros(rows, np.int64), np.arange(start, start + rows)

    def seen(self, row: int) -> dict[str, float]:
        return {self.shards.folder.name: row / self.rows}

    def warnings(self, row: int) -> list[str]:
        return [too_often("The text", row / self.rows)] if row > WORTHWHILE * self.rows else []

    def identity(self) -> dict[str, Any]:
        ordered = {} if self.curriculum == "none" else {"curriculum": self.curriculum, "blur": self.blur}
        return {
            "data": self.shards.fingerprint, "seed": self.seed, "block": self.block, "packing": self.packing,
            "document_mask": self.document_mask, "rows": self.rows, **ordered,
        }  # fmt: skip

    def _epoch(self, epoch: int) -> Ints:
        """The shuffle of an epoch, [R]: rows sorted by a keyed hash, the same on every machine and numpy version."""
        known = self._order
        if known is None or known[0] != epoch:
            key = _mix(np.array([self.seed & (2**64 - 1)], dtype=np.uint64))
            key = _mix(key ^ np.array([epoch], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
            draw = _mix(_mix(np.arange(self.rows, dtype=np.uint64) + key))
            if self.curriculum == "length" and epoch == 0:
                known = (epoch, self._short_first(draw))
            else:
                known = (epoch, np.argsort(draw, kind="stable").astype(np.int64))
            self._order = known
        return known[1]

    def _short_first(self, draw: NDArray[np.uint64]) -> Ints:
        """Rows from short texts to long ones, blurred by the chance of `draw`, [R]."""
        rank = np.empty(self.rows)
        rank[np.lexsort((draw, self.layout.mean_lengths()))] = np.arange(self.rows) / self.rows
        chance = draw.astype(np.float64) / 2.0**64
        return np.argsort((1 - self.blur) * rank + self.blur * chance, kind="stable").astype(np.int64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al., 2014), a bijection of 64-bit words that looks random."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
