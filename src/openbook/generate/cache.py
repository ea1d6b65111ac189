"""The contiguous cache: what layers keep between steps, in one block of columns per kind of layer.

    lane        layers of equal kv heads, sizes and window share keys [L,B,C,G,K] and values [L,B,C,G,V]; the values of
                latent layers are the first V numbers of their keys, and are not kept again
    column      every step writes the same columns in all rows; a row that has less to say leaves a hole there
    held        [B,C] the position of each column's token, `HOLE` where there is none; exists only once rows differ

A ragged batch of prompts is padded on the right with segment 0: padding makes holes, which nobody sees, and each row
counts its own positions. Rows of equal length (a single request, beams, samples of one prompt) need no masks at all:
a decode step then costs a layer two copies and one fused attention.

Growth: a lane without window starts at the first step's tokens, at least `START` columns, and doubles up to
`capacity`; beyond it a step is an `InputError`. A lane with a window keeps what the window can still see plus slack,
and moves it to the front when the slack is used up. `step` builds what the layers need, so that inside them nothing
syncs with the host.

Symbols: B rows, T new tokens, C columns, S visible columns, L layers of a lane, G kv heads, K and V head sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate.lanes import START, Lane
from openbook.nn.attend import Order, mix
from openbook.nn.band import Band, band, fits
from openbook.nn.spec import Pattern
from openbook.nn.state import (
    Declaration,
    Memory,
    PerSequence,
    PerToken,
    PositionBias,
    Recurrence,
    Scores,
    Source,
    SourceKeys,
    visible,
)

HOLE = 1 << 30  # the position of a column that holds no token: after every query, hence never seen


class Keeper(Protocol):
    """What a cache needs to know of a model."""

    @property
    def states(self) -> tuple[Declaration, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Snapshot:
    """A point to which a cache can be taken back. It holds no keys: those of later columns are simply forgotten."""

    used: int
    bounds: tuple[int, int]
    lengths: Tensor | None
    slots: dict[int, tuple[Tensor, ...]]
    order: int


class Contiguous:
    """A cache of `rows` rows of at most `capacity` columns for a model with these `states`.

    `length` is what length-dependent rotary scaling is fixed to (default: `capacity`). Explicit `positions` handed to
    the model must grow along each row: they decide what sees what.
    """

    brings_sources = False

    def __init__(
        self,
        states: Sequence[Declaration],
        rows: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        length: int | None = None,
    ) -> None:
        self.states = tuple(states)
        self.rows = rows
        self.capacity = capacity
        self.device = torch.device(device)
        self.length = capacity if length is None else length
        self.used = 0  # columns written
        self.bounds = (0, 0)  # of the rows' lengths: least, greatest
        self.held: Tensor | None = None
        self._lengths: Tensor | None = None  # [B], once rows differ
        self._free = False  # positions were handed in: no column is ever too old by its number alone
        self.slots: dict[int, tuple[Tensor, ...]] = {}
        self.sources: dict[int, tuple[Tensor, Tensor]] = {}
        self._order = 0  # how often rows were reordered
        self.lanes: dict[PerToken, Lane] = {}
        self.places: dict[int, tuple[Lane, int]] = {}
        for index, state in enumerate(self.states):
            if isinstance(state, PerToken):
                lane = self.lanes.setdefault(state, Lane(state, rows, dtype, self.device))
                self.places[index] = (lane, lane.layers)
                lane.layers += 1

    @classmethod
    def of(cls, model: Keeper, rows: int, capacity: int, *, length: int | None = None) -> Contiguous:
        """A cache for `model`, in its dtype and on its device."""
        return cls(model.states, rows, capacity, dtype=model.dtype, device=model.device, length=length)

    @property
    def lengths(self) -> Tensor:
        """How many tokens each row holds, [B] int64."""
        if self._lengths is None:
            return torch.full((self.rows,), self.used, device=self.device)
        return self._lengths

    @property
    def nbytes(self) -> int:
        """Bytes that keys, values and slots take now."""
        kept = [t for group in (*self.slots.values(), *self.sources.values()) for t in group]
        return sum(lane.nbytes for lane in self.lanes.values()) + sum(t.nbytes for t in kept)

    def step(
        self, rows: int, tokens: int, positions: Tensor | None, segments: Tensor | None, marks: Tensor | None = None
    ) -> Step:
        """Opens a step of `tokens` new columns: segment 0 leaves a hole, any other number is the row's one sequence.

        `marks` [B,T] are the tokens of a prefix: they see later ones, so that they must all be in the first step.
        """
        if marks is not None and self.used:
            raise InputError("A prefix is read both ways: it must be whole in a cache's first step.")
        if rows != self.rows:
            raise InputError(f"This cache has {self.rows} rows: got {rows}.")
        if self.used + tokens > self.capacity:
            raise InputError(
                f"The cache is full: its capacity is {self.capacity} tokens a row, {self.used} are used and {tokens} "
                "more were asked for. Ask for less, or make it with a larger `capacity`."
            )
        if positions is None and segments is None and self.held is None:  # all rows alike
            counted = torch.arange(self.used, self.used + tokens, device=self.device).expand(rows, tokens)
            least = self.used
            self.bounds = (self.used + tokens, self.used + tokens)
        else:
            least = 0 if self._free or positions is not None else self.bounds[0]
            counted = self._ragged(tokens, positions, segments)
        for lane in self.lanes.values():
            window = lane.kind.window
            # A token's position is never beyond its column, so no query can see a column before this one.
            lane.open(self.used, tokens, 0 if window is None else max(0, least - window + 1), self.capacity)
        state = Step(self, counted, segments, self.bounds[1], self.used, tokens, marks)
        self.used += tokens
        return state

    def _ragged(self, tokens: int, positions: Tensor | None, segments: Tensor | None) -> Tensor:
        """Positions [B,T] of a step in which rows differ; notes what its columns hold."""
        if self.held is None:
            self._lengths = self.lengths
            self._hold(self.used + tokens)[:, : self.used] = torch.arange(self.used, device=self.device)
        elif self.used + tokens > self.held.shape[1]:
            before = self.held
            self._hold(2 * (self.used + tokens))[:, : self.used] = before[:, : self.used]
        assert self.held is not None
        assert self._lengths is not None
        if segments is None:
            counted = self._lengths.unsqueeze(1) + torch.arange(tokens, device=self.device)
            counted = counted if positions is None else positions
            self.held[:, self.used : self.used + tokens] = counted
            self._lengths = self._lengths + tokens
            self.bounds = (self.bounds[0] + tokens, self.bounds[1] + tokens)
        else:
            real = segments != 0
            counted = (self._lengths.unsqueeze(1) + real.cumsum(1) - 1).clamp(min=0)
            counted = counted if positions is None else positions
            self.held[:, self.used : self.used + tokens] = torch.where(real, counted, HOLE)
            self._lengths = self._lengths + real.sum(1)
            self._measure()
        if positions is not None:
            self._free = True
            self._lengths = torch.maximum(self._lengths, counted.amax(1) + 1)
            self._measure()
        return counted

    def _hold(self, columns: int) -> Tensor:
        with torch.inference_mode(False):
            size = (self.rows, min(self.capacity, max(START, columns)))
            self.held = torch.full(size, HOLE, device=self.device)
        return self.held

    def _measure(self) -> None:
        if self._lengths is not None:
            lengths = self._lengths.tolist()
            self.bounds = (min(lengths, default=0), max(lengths, default=0))

    def reorder(self, rows: Tensor | Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was: rows may be repeated (beams, samples), dropped or moved."""
        places = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        for lane in self.lanes.values():
            lane.reorder(places, self.used)
        self.slots = {i: tuple(t.index_select(0, places) for t in kept) for i, kept in self.slots.items()}
        self.sources = {i: (k.index_select(0, places), v.index_select(0, places)) for i, (k, v) in self.sources.items()}
        if self.held is not None and self._lengths is not None:
            before, self.rows = self.held, len(places)
            self._hold(before.shape[1])[:, : self.used] = before[:, : self.used].index_select(0, places)
            self._lengths = self._lengths.index_select(0, places)
            self._measure()
        self.rows = len(places)
        self._order += 1

    def snapshot(self) -> Snapshot:
        """The present point, for `restore`."""
        lengths = None if self._lengths is None else self._lengths
        return Snapshot(self.used, self.bounds, lengths, dict(self.slots), self._order)

    def restore(self, point: Snapshot) -> None:
        """Forgets all that came after `point`. Raises `InputError` where a window has let go of what it would need."""
        if point.order != self._order:
            raise InputError("This snapshot is of other rows: the cache was reordered after it.")
        for lane in self.lanes.values():
            window = lane.kind.window
            if window is not None and lane.start > max(0, (0 if self._free else point.bounds[0]) - window + 1):
                raise InputError(
                    f"The cache cannot go back from {self.used} to {point.used} tokens: layers with a window of "
                    f"{window} have let go of what was before."
                )
        if self.held is not None:
            self.held[:, point.used : self.used] = HOLE
        self._lengths = torch.full((self.rows,), point.used, device=self.device) if self.held is not None else None
        self._lengths = self._lengths if point.lengths is None else point.lengths
        self.used, self.bounds, self.slots = point.used, point.bounds, dict(point.slots)


class Step:
    """The state of one step of a `Contiguous` cache (see `openbook.nn.state.State`)."""

    keeps = True

    def __init__(
        self,
        cache: Contiguous,
        positions: Tensor,
        segments: Tensor | None,
        longest: int,
        used: int,
        tokens: int,
        marks: Tensor | None = None,
    ) -> None:
        self.cache = cache
        self.positions = positions
        self.segments = segments
        self.longest = longest
        self.length: int | tuple[int, ...] = cache.length
        self.used = used
        self.tokens = tokens
        self.marks = marks
        self._masks: dict[tuple[int, Pattern], tuple[Tensor | None, bool]] = {}
        self._bands: dict[Pattern, Band] = {}
        self._module: PositionBias | None = None
        self._biases: dict[tuple[int, Pattern], Tensor] = {}

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        lane, place = self.cache.places[index]
        if k.requires_grad:  # a cache is for inference: gradients end here
            k, v = k.detach(), v.detach()
        lane.write[0][place].copy_(k)
        if not lane.kind.latent:
            lane.write[1][place].copy_(v)
        if not scores.bias and self._whole(lane.first) and fits(scores.pattern, self.tokens):
            return self._in_blocks(q, k, v, scores)
        key = (lane.first, scores.pattern)
        found = self._masks.get(key)
        if found is None:
            found = self._masks[key] = self._mask(lane.first, scores.pattern)
        bias = self._bias(key, found) if scores.bias else None
        k, v = lane.seen[0][place], lane.seen[1][place]
        return mix(q, k, v, *found, scores.scale, scores.softcap, 0.0, bias, sinks=scores.sinks)

    def _whole(self, first: int) -> bool:
        """Whether what is seen is what is written: the first step of rows that are all alike."""
        return self.used == first == 0 and self.cache.held is None and self.marks is None

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        pattern = scores.pattern
        if pattern not in self._bands:
            self._bands[pattern] = band(pattern, self.tokens, None, None, q.device)
        order = Order(pattern.causal, pattern.window, None)
        blocks, scale = self._bands[pattern], scores.scale
        return mix(q, k, v, blocks, False, scale, scores.softcap, order=order, sinks=scores.sinks)

    def _keys(self, first: int) -> Tensor:
        """Positions of the seen columns, [B or 1,S]."""
        end = self.used + self.tokens
        if self.cache.held is None:
            return torch.arange(first, end, device=self.positions.device).unsqueeze(0)
        return self.cache.held[:, first:end]

    def _mask(self, first: int, pattern: Pattern) -> tuple[Tensor | None, bool]:
        """What is seen, [B or 1,1,T,S], and whether plain causality says it. Padding sees all, so no row is empty."""
        alike = self.cache.held is None
        marked = None if pattern.marked is None else self.marks
        plain = alike and pattern.chunk is None and marked is None  # what is below is all
        if plain and (self.tokens == 1 or not pattern.causal) and pattern.window is None:
            return None, False
        if plain and self.tokens == 1 and pattern.window is not None and self.used - first < pattern.window:
            return None, False
        if (
            plain
            and self.used == first
            and pattern.causal
            and (pattern.window is None or pattern.window >= self.tokens)
        ):
            return None, True
        query = self.positions[:1] if alike and marked is None else self.positions
        keys = self._keys(first)
        seen = visible(pattern, query, keys)
        if marked is not None:  # the first step: its keys are its queries
            seen = seen | (
                visible(replace(pattern, causal=False), query, keys) & marked.unsqueeze(1) & marked.unsqueeze(2)
            )
        seen = seen & (keys < HOLE).unsqueeze(1)
        if self.segments is not None:
            seen = seen | (self.segments == 0).unsqueeze(2)
        return seen.unsqueeze(1), False

    def bias(self, module: PositionBias, mask: int) -> None:  # noqa: ARG002 (the layer's pattern says it)
        self._module = module

    def _bias(self, key: tuple[int, Pattern], found: tuple[Tensor | None, bool]) -> Tensor:
        if key not in self._biases:
            assert self._module is not None, "the stack hands over its bias before its layers run"
            keys = self._keys(key[0])
            query = self.positions[:1] if self.cache.held is None else self.positions
            bias = self._module(query, keys)
            seen = visible(key[1], query, keys).unsqueeze(1) if found[1] else found[0]
            self._biases[key] = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
        return self._biases[key]

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:
        out, after = run(x, self._slot(index), self.segments)
        self.cache.slots[index] = tuple(t.detach() for t in after)
        return out

    def _slot(self, index: int) -> tuple[Tensor, ...]:
        kept = self.cache.slots.get(index)
        if kept is None:
            kind = self.cache.states[index]
            assert isinstance(kind, PerSequence)
            device = self.positions.device
            return tuple(torch.zeros(self.cache.rows, *shape, device=device) for shape in kind.shapes)
        if kept[0].is_inference() and not torch.is_inference_mode_enabled():
            return tuple(t.clone() for t in kept)  # what inference mode made, autograd would refuse
        return kept

    def look(
        self, index: int, q: Tensor, source: Source | None, keys: SourceKeys, scale: float, dropout: float
    ) -> Tensor:
        k, v = self._source(index, source, keys)
        return mix(q, k, v, None if source is None else source.visible, False, scale, dropout=dropout)

    def recall(self, index: int, source: Source | None, keys: SourceKeys) -> Memory:
        return Memory.of(*self._source(index, source, keys), None if source is None else source.visible)

    def _source(self, index: int, source: Source | None, keys: SourceKeys) -> tuple[Tensor, Tensor]:
        assert source is not None, "an encoder-decoder runs with a source"
        if index not in self.cache.sources:
            k, v = keys(source.hidden)
            self.cache.sources[index] = (k.detach(), v.detach())
        return self.cache.sources[index]
