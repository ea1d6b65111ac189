"""One training batch: packed rows of tokens and what the objective wants to know about them.

Symbols: B rows, T tokens of a row, S source tokens of a row, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from openbook.data.packing import IGNORED as IGNORED
from openbook.data.packing import Rows


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens with everything that a step needs; every tensor has the same B.

    `segments` numbers the documents packed into a row 1, 2, …; 0 is padding. `segments=None` says more: every row is
    one run of text without padding, and plain causal attention is right (the fastest path). `positions` restart with
    each segment; None means 0 … T-1 in every row. `targets` maps a head's name to what it should predict at each token,
    `IGNORED` where it should not: `targets["language"]` is [B,T] int64, the next token of the same document.
    """

    ids: Tensor  # [B,T] int64
    positions: Tensor | None = None  # [B,T] int64
    segments: Tensor | None = None  # [B,T] int64, 0 padding
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    source: Tensor | None = None  # [B,S] int64, the encoder's tokens
    source_segments: Tensor | None = None  # [B,S] int64
    embeds: Tensor | None = None  # [B,T,D], in place of the embedding of `ids`
    types: Tensor | None = None  # [B,T] int64, BERT's token types
    marks: Tensor | None = None  # [B,T] boolean, the tokens of a prefix, or global ones (see nn/spec_local.py)

    def __post_init__(self) -> None:
        assert self.ids.ndim == 2, f"ids must be [B,T], got {list(self.ids.shape)}"
        for name in ("positions", "segments", "types", "marks"):
            value = getattr(self, name)
            assert value is None or value.shape == self.ids.shape, (
                f"{name} {list(value.shape)} != {list(self.ids.shape)}"
            )

    @property
    def rows(self) -> int:
        """B."""
        return self.ids.shape[0]

    def prefixes(self) -> Tensor:
        """What stands before a text's first target, the token that predicts it included: [B,T] boolean.

        It is the prompt of a text whose answer alone is learned.
        """
        learned = (self.targets["language"] != IGNORED).long()
        passed = learned.cumsum(1) - learned  # targets before each token
        segments = torch.ones_like(self.ids) if self.segments is None else self.segments
        places = torch.arange(segments.shape[1], device=segments.device)
        first = torch.ones_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        start = torch.where(first, places, 0).cummax(dim=1).values  # where each token's text begins
        return (passed == passed.gather(1, start)) & (segments != 0)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, from which a copy to a GPU can overlap with its work."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "targets"}
        changed = {name: change(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, targets={name: change(tensor) for name, tensor in self.targets.items()}, **changed)


def as_batch(rows: Rows) -> Batch:
    """Numpy rows as tensors, without a copy."""
    return Batch(
        ids=torch.from_numpy(rows.ids),
        positions=None if rows.positions is None else torch.from_numpy(rows.positions),
        segments=None if rows.segments is None else torch.from_numpy(rows.segments),
        targets={"language": torch.from_numpy(rows.targets)},
    )
