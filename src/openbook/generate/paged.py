"""The thinnest paged step: many sequences packed in one row, their keys and values in pages, gathered by tables.

Tokens come as [1,total] with segments that name their sequence (any number above 0, tokens of one sequence in order). A
sequence owns a list of pages of `page` tokens; token p of it lives in page `table[p // page]` at `p % page`. In each
layer the new keys are scattered to their pages, the pages of the sequences of this step are gathered, and one mask says
which token sees which: its own sequence, not later than itself. What is gathered is quadratic in the number of
sequences; the engine's kernels do better, with the same tables. Kwon et al. 2023 (arXiv 2309.06180).

Symbols: N sequences of this step, P pages each (padded), S = N·P·page keys, L layers, G kv heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate.cache import HOLE, Keeper
from openbook.nn.attend import mix
from openbook.nn.spec import Pattern
from openbook.nn.state import PerToken, PositionBias, Recurrence, Scores, Source, SourceKeys, visible


class Paged:
    """`pages` pages of `page` tokens for a model whose layers all keep keys and values per token."""

    def __init__(self, model: Keeper, pages: int, page: int = 16, *, length: int = 0) -> None:
        kinds = [kind for kind in model.states if isinstance(kind, PerToken)]
        if len(kinds) < len(model.states):
            raise InputError("A packed row holds many sequences: layers that keep a state per row need `Contiguous`.")
        self.page = page
        self.length = length
        self.free = list(range(pages))[::-1]
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        room = torch.zeros(pages, page, 1, 1, dtype=model.dtype, device=model.device)
        self.keys = [room.repeat(1, 1, kind.kv_heads, kind.key_dim) for kind in kinds]
        self.values = [room.repeat(1, 1, kind.kv_heads, kind.value_dim) for kind in kinds]

    def step(self, rows: int, tokens: int, positions: Tensor | None, segments: Tensor | None) -> PagedStep:
        """Opens a step: gives every token its place. Raises `InputError` when the pages do not suffice."""
        if rows != 1 or segments is None or positions is not None or segments.shape != (1, tokens):
            raise InputError(
                "A paged step takes one row [1,total] with segments that name sequences, and no positions."
            )
        names = segments[0].tolist()
        if min(names, default=1) < 1:
            raise InputError("A packed row has no padding: segments must be above 0.")
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        wanted = {name: -(-(self.lengths.get(name, 0) + count) // self.page) for name, count in counts.items()}
        more = sum(count - len(self.tables.get(name, ())) for name, count in wanted.items())
        if more > len(self.free):
            raise InputError(f"{more} pages of {self.page} tokens are needed and {len(self.free)} are free.")
        places, slots = [], []
        for name in names:
            table, at = self.tables.setdefault(name, []), self.lengths.get(name, 0)
            if at == len(table) * self.page:
                table.append(self.free.pop())
            places.append(at)
            slots.append(table[at // self.page] * self.page + at % self.page)
            self.lengths[name] = at + 1
        return PagedStep(self, places, slots, segments, list(counts))

    def release(self, name: int) -> None:
        """Gives the pages of a finished sequence back."""
        self.free += self.tables.pop(name, [])
        self.lengths.pop(name, None)


class PagedStep:
    """The state of one packed step (see `openbook.nn.state.State`)."""

    def __init__(
        self, pool: Paged, places: Sequence[int], slots: Sequence[int], segments: Tensor, names: Sequence[int]
    ) -> None:
        device = segments.device
        self.pool = pool
        self.positions = torch.tensor([places], device=device)
        self.segments = segments
        self.longest = max(places, default=0) + 1
        self.length: int | tuple[int, ...] = pool.length
        self.slots = torch.tensor(slots, device=device)
        most = max(len(pool.tables[name]) for name in names)
        self.table = torch.tensor([pool.tables[n] + [0] * (most - len(pool.tables[n])) for n in names], device=device)
        span = torch.arange(most * pool.page, device=device)
        ends = torch.tensor([[pool.lengths[name]] for name in names], device=device)
        self.keys = torch.where(span < ends, span, HOLE).reshape(1, -1)  # positions, [1,S]
        owner = torch.tensor(names, device=device).repeat_interleave(len(span))
        self.own = segments.unsqueeze(2) == owner  # [1,T,S]
        self._masks: dict[Pattern, Tensor] = {}
        self._module: PositionBias | None = None

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        keys, values = self.pool.keys[index], self.pool.values[index]
        keys.flatten(0, 1)[self.slots] = k[0].detach()
        values.flatten(0, 1)[self.slots] = v[0].detach()
        seen = self._masks.get(scores.pattern)
        if seen is None:
            near = visible(scores.pattern, self.positions, self.keys) & (self.keys < HOLE).unsqueeze(1)
            seen = self._masks[scores.pattern] = (near & self.own).unsqueeze(1)
        bias = None
        if scores.bias and self._module is not None:
            bias = self._module(self.positions, self.keys).masked_fill(~seen, -torch.inf)
        k, v = (block[self.table].flatten(0, 2).unsqueeze(0) for block in (keys, values))  # [1,S,G,K]
        return mix(q, k, v, seen, False, scores.scale, scores.softcap, 0.0, bias)

    def bias(self, module: PositionBias, mask: int) -> None:  # noqa: ARG002 (the layer's pattern says it)
        self._module = module

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:  # noqa: ARG002
        raise AssertionError(f"layer {index}: refused when the pool was made")

    def look(
        self,
        index: int,
        q: Tensor,
        source: Source | None,
        keys: SourceKeys,
        scale: float,
        dropout: float,  # noqa: ARG002
    ) -> Tensor:
        raise AssertionError(f"layer {index}: refused when the pool was made")
