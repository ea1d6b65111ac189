"""What a forward pass knows: its `Context`, and the `State` behind `ctx.attend`.

A layer declares what it keeps between steps: `PerToken` (keys and values, pageable), `PerSequence` (a slot of fixed
size) or `PerSource` (keys and values of the encoder's output, computed once). Its place in `model.states` is its index.
A layer asks `ctx.attend(index, q, k, v, scores)` and gets the mixed values back; whether the keys live in this batch
(`Dense`, below), in a contiguous cache or in pages is the state's business. Masks and indices are built once per step,
outside the layers; inside nothing syncs with the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from openbook.nn.attend import Order, mix
from openbook.nn.band import Band, band, fits
from openbook.nn.marks import Marks
from openbook.nn.routing import Decision
from openbook.nn.spec import Pattern


@dataclass(frozen=True, kw_only=True)
class PerToken:
    """Keys [G, key_dim] and values [G, value_dim] for each token; `window` bounds how long they are needed."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    latent: bool = False  # the value is the first `value_dim` numbers of the key: one kv head, kept once

    @property
    def numbers(self) -> int:
        """How many are kept of a token."""
        return self.kv_heads * (self.key_dim + (0 if self.latent else self.value_dim))


@dataclass(frozen=True, kw_only=True)
class PerSequence:
    """Tensors of these shapes for each sequence, in fp32."""

    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class PerSource:
    """Keys and values of the encoder's output for each sequence."""

    kv_heads: int
    key_dim: int
    value_dim: int


Declaration = PerToken | PerSequence | PerSource


class Scores(NamedTuple):
    """How scores are made: what the attention layer knows of them. `mask` indexes the stack's patterns."""

    pattern: Pattern
    mask: int
    scale: float
    softcap: float | None = None
    dropout: float = 0.0
    bias: bool = False  # add the stack's position bias
    added: Tensor | None = None  # what a layer of a whole row adds of its own, [B,H,T,S]
    sinks: Tensor | None = None  # [H]: one more score of each head, without a value


class PositionBias(Protocol):
    """A bias of the scores that depends on where query and key stand."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """Positions [B,T] and [B,S] → bias [B or 1,H,T,S]."""
        ...


# Of a recurrent layer: (x [B,T,C], the state before, segments [B,T]) → (out [B,T,C'], the state after). The state is
# [B,...] for each declared tensor; None: a fresh start.
Recurrence = Callable[[Tensor, tuple[Tensor, ...] | None, Tensor | None], tuple[Tensor, tuple[Tensor, ...]]]

# An encoder's output [B,S,D] → keys [B,S,G,K] and values [B,S,G,V].
SourceKeys = Callable[[Tensor], tuple[Tensor, Tensor]]


class State(Protocol):
    """What layers ask of the batch they run in. `Dense` below; the caches are in `generate/`."""

    positions: Tensor  # [B,T] int64
    segments: Tensor | None  # [B,T], 0 is padding
    keeps: bool  # whether keys outlive this step: then what is kept of them counts, not what is made of it
    longest: int  # no position of this step is at or beyond it; the host knows it
    length: int | tuple[int, ...]  # what length-dependent rotary scaling is fixed to, in tokens; or for each of T

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        """q [B,T,H,K], k [B,T,G,K], v [B,T,G,V] of the new tokens → [B,T,H,V]."""
        ...

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:
        """What `run` makes of x [B,T,C] from each sequence's state before these tokens; the state after them is kept.

        Where several sequences are packed into one row, `run` is called for each group of equal length.
        """
        ...

    def look(
        self, index: int, q: Tensor, source: Source | None, keys: SourceKeys, scale: float, dropout: float
    ) -> Tensor:
        """Attention of q [B,T,H,K] over the source → [B,T,H,V]; its keys and values are made once for each source."""
        ...

    def recall(self, index: int, source: Source | None, keys: SourceKeys) -> Memory:
        """What the source says to the rows that run now, for layers that weigh it themselves; made once for a source.

        Inside `recur` the rows are those that it was called with.
        """
        ...

    def bias(self, module: PositionBias, mask: int) -> None:
        """Take the stack's position bias for this step; `attend` adds it where `scores.bias` says so."""
        ...


class Source(NamedTuple):
    """The encoder's output [B,S,D] and which of it may be seen: [B,1,1,S] or [B,1,T,S] boolean, None: all."""

    hidden: Tensor
    visible: Tensor | None


class Memory(NamedTuple):
    """The keys [B,S,K] and values [B,S,V] of a source; which may be seen: [B,1 or T,S] boolean, None: all."""

    keys: Tensor
    values: Tensor
    visible: Tensor | None

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, visible: Tensor | None) -> Memory:
        """From keys and values of one head and the mask that `look` takes."""
        return cls(keys.squeeze(2), values.squeeze(2), None if visible is None else visible.squeeze(1))


class Distances(NamedTuple):
    """The stack's vectors of relative distances [R,D], and which of them each query and key has, [B or 1,T,T]."""

    vectors: Tensor
    which: Tensor


class Context(NamedTuple):
    """Everything a layer may know beside its input."""

    state: State
    rotary: tuple[tuple[Tensor, Tensor], ...]  # cos and sin, [B,T,1,K] each, one pair for each distinct Rope
    source: Source | None = None
    routers: list[Decision] | None = None  # filled by MoE layers with what their routers decided, when there is a list
    marks: Marks | None = None  # the tokens that the caller marks
    vectors: Distances | None = None  # the stack's vectors of relative positions
    layers: list[Tensor] | None = None  # filled with the embedding and each block's output [B,T,D] when a list is given


def count_positions(segments: Tensor) -> Tensor:
    """Positions [B,T] that start again at 0 with each segment."""
    steps = torch.arange(segments.shape[1], device=segments.device)
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = torch.where(first, steps, 0).cummax(dim=1).values
    return steps - starts


def visible(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    """Which positions [.., T] see which [.., S] by order alone: boolean [.., T, S]."""
    distance = query.unsqueeze(-1) - key.unsqueeze(-2)
    seen = distance >= 0 if pattern.causal else torch.ones_like(distance, dtype=torch.bool)
    if pattern.window is not None:
        seen = seen & (distance.abs() < pattern.window)
    if pattern.chunk is not None:
        seen = seen & (query.unsqueeze(-1) // pattern.chunk == key.unsqueeze(-2) // pattern.chunk)
    return seen


def _marked(pattern: Pattern, flags: Tensor, order: Tensor) -> Tensor:
    """What marks add to a pattern, [B,1,T,T]: a prefix that sees itself both ways, or keys that every token sees."""
    keys = flags[:, None, None]  # [B,1,1,T]
    if pattern.marked == "global":
        return keys
    both = keys & flags[:, None, :, None]
    if pattern.window is not None:
        both = both & ((order.unsqueeze(1) - order).abs() < pattern.window)
    return both


class Dense:
    """The state of a forward pass over whole rows: keys and values are those of this batch, nothing is kept."""

    keeps = False

    def __init__(
        self,
        positions: Tensor,
        segments: Tensor | None,
        patterns: tuple[Pattern, ...],
        longest: int,
        length: int | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.positions = positions
        self.segments = segments
        self.longest = longest
        self.length: int | tuple[int, ...] = longest if length is None else length
        self.patterns = patterns
        self.marks = marks
        self.splits = tuple(self._split(pattern) for pattern in patterns)
        self.masks = tuple(map(self._seen, patterns, self.splits))
        self.biases: Tensor | None = None

    def _split(self, pattern: Pattern) -> Tensor | None:
        """The segments [B,T] within which tokens see each other: those there are, each cut into its chunks."""
        if pattern.chunk is None or self.longest <= pattern.chunk:
            return self.segments
        whole = torch.ones_like(self.positions) if self.segments is None else self.segments
        number = (whole - 1) * (-(-self.longest // pattern.chunk)) + self.positions // pattern.chunk + 1
        return torch.where(whole == 0, 0, number)

    def _seen(self, pattern: Pattern, segments: Tensor | None) -> Tensor | Band | None:
        """None where the pattern alone says it (plain causal, or everything); blocks, or a mask as `_mask`."""
        tokens = self.positions.shape[1]
        marked = self.marks is not None and pattern.marked is not None
        if segments is None and not marked and (pattern.window is None or pattern.window >= tokens):
            return None
        if fits(pattern, tokens):
            return band(pattern, tokens, segments, self.marks if marked else None, self.positions.device)
        return self._mask(pattern, segments)

    def _mask(self, pattern: Pattern, segments: Tensor | None) -> Tensor:
        """[B or 1,1,T,T] boolean."""
        tokens = self.positions.shape[1]
        order = torch.arange(tokens, device=self.positions.device)
        seen = visible(replace(pattern, chunk=None), order, order)[None, None]
        if self.marks is not None and pattern.marked is not None:
            seen = seen | _marked(pattern, self.marks.flags, order)
        if segments is None:
            return seen
        same = segments[:, None, :, None] == segments[:, None, None, :]
        real = segments[:, None, None, :] != 0
        # Padding sees itself, so that no row of scores is empty and no gradient is NaN.
        return (seen & same & real) | torch.eye(tokens, dtype=torch.bool, device=seen.device)

    def _mask_at(self, scores: Scores) -> Tensor:
        seen = self.masks[scores.mask]
        return seen if isinstance(seen, Tensor) else self._mask(scores.pattern, self.splits[scores.mask])

    def bias(self, module: PositionBias, mask: int) -> None:
        if self.segments is None:  # every row has the same distances
            bias = module(self.positions[:1], self.positions[:1])
        else:
            bias = module(self.positions, self.positions)
        seen = self.masks[mask]
        if isinstance(seen, Band):
            seen = self._mask(self.patterns[mask], self.splits[mask])
        if seen is None and self.patterns[mask].causal:
            seen = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
        self.biases = bias if seen is None else bias.masked_fill(~seen, float("-inf"))

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:  # noqa: ARG002
        seen = self.masks[scores.mask]
        causal = seen is None and scores.pattern.causal
        bias = self.biases if scores.bias else None
        if scores.added is not None:
            bias = scores.added
            if self.segments is not None:
                bias = bias.masked_fill(~self._mask_at(scores), -torch.inf)
        marked = self.marks is not None and scores.pattern.marked is not None
        order = None if marked else Order(scores.pattern.causal, scores.pattern.window, self.splits[scores.mask])
        return mix(q, k, v, seen, causal, scores.scale, scores.softcap, scores.dropout, bias, order, scores.sinks)

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:  # noqa: ARG002
        return run(x, None, self.segments)[0]

    def look(
        self,
        index: int,  # noqa: ARG002
        q: Tensor,
        source: Source | None,
        keys: SourceKeys,
        scale: float,
        dropout: float,
    ) -> Tensor:
        assert source is not None, "an encoder-decoder runs with a source"
        k, v = keys(source.hidden)
        return mix(q, k, v, source.visible, False, scale, dropout=dropout)

    def recall(self, index: int, source: Source | None, keys: SourceKeys) -> Memory:  # noqa: ARG002
        assert source is not None, "an encoder-decoder runs with a source"
        return Memory.of(*keys(source.hidden), source.visible)


class Later:
    """The state for a block that runs again: the same, under indices moved by `shift`."""

    def __init__(self, state: State, shift: int) -> None:
        self.state = state
        self.shift = shift
        self.positions, self.segments = state.positions, state.segments
        self.longest, self.length, self.keeps = state.longest, state.length, state.keeps

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        return self.state.attend(index + self.shift, q, k, v, scores)

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:
        return self.state.recur(index + self.shift, x, run)

    def look(
        self, index: int, q: Tensor, source: Source | None, keys: SourceKeys, scale: float, dropout: float
    ) -> Tensor:
        return self.state.look(index + self.shift, q, source, keys, scale, dropout)

    def recall(self, index: int, source: Source | None, keys: SourceKeys) -> Memory:
        return self.state.recall(index + self.shift, source, keys)

    def bias(self, module: PositionBias, mask: int) -> None:
        self.state.bias(module, mask)


class Cache(Protocol):
    """What a model needs of a cache: a state for the next tokens of its rows."""

    brings_sources: bool  # whether the state knows what encoders said, so that nobody has to hand it in

    def step(
        self, rows: int, tokens: int, positions: Tensor | None, segments: Tensor | None, marks: Tensor | None = None
    ) -> State:
        """Open a step of `tokens` new tokens for each of `rows` rows; its masks are made for the model's `patterns`.

        `marks` [B,T]: the tokens of a prefix, which is read whole in the first step.
        """
        ...


class Stateful(nn.Module):
    """A layer that keeps state between steps; `index` is set when the model is built."""

    index: int = -1

    def declare(self) -> Declaration:
        """What this layer keeps."""
        raise NotImplementedError
