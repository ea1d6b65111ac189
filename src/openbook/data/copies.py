"""A text cut into tokens in several ways, to train on in turn: see text/algorithms/sampling.py.

Shards hold ids, so other cuts are other shards: the text is prepared once for each of several *copies*, with a
tokenizer that samples, and the epochs of the training go through the copies in turn, each read anew in another order.
What a text becomes depends on the copy and on the text alone: preparing is resumed, shared out and repeated as ever.
What is held out is measured on the text as it is cut when the model is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from openbook.data.heldout import HeldOut
from openbook.data.loader import WORTHWHILE, Loader, too_often
from openbook.data.mixture import Several
from openbook.data.packing import Ints
from openbook.errors import DataError, UsageError
from openbook.text.algorithms.sampling import check_kind, check_rates
from openbook.text.tokenizer import Tokenizer


class Sampled:
    """A tokenizer that cuts each text in the way that `copy` and the text draw: what `prepare` asks of one."""

    def __init__(self, tokenizer: Tokenizer, *, dropout: float | None, alpha: float | None, copy: int) -> None:
        check_rates(dropout, alpha)
        check_kind(tokenizer.whole, dropout)
        self.tokenizer, self.dropout, self.alpha, self.copy = tokenizer, dropout, alpha, copy
        self.vocab, self.bos, self.eos = tokenizer.vocab, tokenizer.bos, tokenizer.eos
        way = f"{tokenizer.fingerprint} dropout={dropout} alpha={alpha} copy={copy}"
        self.fingerprint = hashlib.sha256(way.encode()).hexdigest()[:32]

    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]:
        """Ids of each text."""
        return [
            self.tokenizer.sample(text, dropout=self.dropout, alpha=self.alpha, seed=self._seed(text)) for text in texts
        ]

    def token_bytes(self, number: int, /) -> bytes:
        """The bytes of an id."""
        return self.tokenizer.token_bytes(number)

    def _seed(self, text: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.copy}:{text}".encode(), digest_size=8).digest(), "little")


class Copies(Several):
    """The copies of one text, an epoch of each in turn; `plain` is the text cut the best way, for what is held out.

    rows, targets: of one epoch, in the mean.
    """

    def __init__(self, plain: Loader, copies: Sequence[Loader]) -> None:
        if not copies:
            raise UsageError("There are no copies to train on: give one or more.")
        facts = {(len(one.shards.pieces), one.shards.bytes, one.shards.held_out) for one in (plain, *copies)}
        if len(facts) > 1 or any((one.shards.pieces["hash"] != plain.shards.pieces["hash"]).any() for one in copies):
            raise DataError("The copies are not of one text: prepare them all from the same files, in the same way.")
        super().__init__({f"copy {number}": loader for number, loader in enumerate(copies, 1)})
        self.plain = plain
        self.cycle = self.rows  # rows of all copies
        self.rows, self.targets = self.cycle // len(copies), self.targets // len(copies)

    def turns(self, start: int, rows: int) -> tuple[Ints, Ints]:
        if start < 0 or rows < 1:
            raise UsageError(
                f"A batch begins at row 0 or later and has at least 1 row: got start={start}, rows={rows}."
            )
        cycles, at = np.divmod(np.arange(start, start + rows), self.cycle)
        copies = np.searchsorted(self.begins, at, side="right") - 1
        sizes = np.diff(self.begins)
        return copies, cycles * sizes[copies] + at - self.begins[copies]

    def held_out(self, rows: int, *, limit: int | None = None) -> HeldOut:
        return self.plain.held_out(rows, limit=limit)

    def seen(self, row: int) -> dict[str, float]:
        cycles, at = divmod(row, self.cycle)
        within = np.clip(at - self.begins[:-1], 0, np.diff(self.begins)) / np.diff(self.begins)
        return {name: float(cycles + part) for name, part in zip(self.loaders, within, strict=True)}

    def warnings(self, row: int) -> list[str]:
        return [too_often("Each copy of the text", row / self.cycle)] if row > WORTHWHILE * self.cycle else []

    def identity(self) -> dict[str, Any]:
        first = next(iter(self.loaders.values())).identity()
        data = [loader.shards.fingerprint for loader in self.loaders.values()]
        return {**first, "data": data, "rows": self.cycle}
