"""One step of the engine as tensors: the tokens of many sequences packed in one row, and the state their layers ask.

    ids [1,T], positions [1,T]     sequence after sequence: a chunk of a prompt, a last token, a last token and drafts
    walk of each page group        tables [N,P], starts [N+1], lengths [N], slots [T]: see nn/paged.py
    groups of equal length         how recurrent layers take packed tokens: each group is a [B,t] batch of its own

All of it is made once, before the layers run. What recurrent layers leave behind is written only when the whole step
has succeeded (`settle`), so that a step that fails half-way can be run again; keys and values may be written twice.

Symbols: N sequences of the step, T tokens, P pages of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openbook.generate.plan import Work
from openbook.generate.store import Store
from openbook.nn.paged import Pages, Walk, attend, write, write_and_attend
from openbook.nn.state import Memory, PositionBias, Recurrence, Scores, Source, SourceKeys

BLOCK = 256  # distances whose bias is computed at once: always the same shape, so that a distance has one bias


class Sources(NamedTuple):
    """Sources whose encoder's output comes in with this step."""

    hidden: Tensor  # [1,S,D], source after source
    slots: Tensor  # [S] where their keys and values are written
    adapted: tuple[tuple[str, Tensor], ...] = ()  # which of the S belong to which adapter


class Part(NamedTuple):
    """Sequences of equal length in a step, for recurrent layers."""

    rows: Tensor | None  # [B·t] places in the packed row; None: all of it, in order
    tokens: int  # t
    slots: Tensor  # [B]
    members: tuple[int, ...] = ()  # which of the step's sequences


class Biases:
    """The position bias of a stack by distance, [H,distances]; grows in blocks and is kept while the weights are."""

    def __init__(self) -> None:
        self.table: Tensor | None = None
        self.version = 0

    def at(self, version: int) -> Biases:
        """Of this version of the weights."""
        if version != self.version:
            self.table, self.version = None, version
        return self

    def upto(self, module: PositionBias, longest: int, device: torch.device) -> Tensor:
        """At least `longest` distances."""
        have = 0 if self.table is None else self.table.shape[1]
        while have < longest:
            keys = torch.arange(BLOCK, device=device).unsqueeze(0)
            block = module(torch.tensor([[have + BLOCK - 1]], device=device), keys)  # [1,H,1,BLOCK]
            block = block[0, :, 0].flip(-1).float()
            self.table = block if self.table is None else torch.cat([self.table, block], dim=1)
            have += BLOCK
        assert self.table is not None
        return self.table


class Packed:
    """The state of one packed step (see `openbook.nn.state.State`), and the cache that hands it out."""

    brings_sources = True
    keeps = True

    def __init__(self, store: Store, works: Many[Work], rotary: Many[int], biases: Biases) -> None:
        self.store = store
        self.works = works
        self.segments: Tensor | None = None
        self.biases = biases
        self.sources: Sources | None = None
        counts = [work.count for work in works]
        self.starts = [0, *np.cumsum(counts).tolist()]
        ends = [work.start + work.count for work in works]
        self.longest = max(ends)
        self.counts = counts
        self.ends = ends
        places = _places(works, counts)
        device = store.device
        self.positions = torch.from_numpy(places).unsqueeze(0).to(device)  # [1,T]
        self.length: int | tuple[int, ...] = self._lengths(rotary)
        starts = torch.tensor(self.starts, dtype=torch.int32, device=device)
        lengths = torch.tensor(ends, dtype=torch.int32, device=device)
        self.walks = [
            self._walk([work.sequence.tables[group] for work in works], places, starts, lengths)
            for group in range(len(store.shape.groups))
        ]
        self.source_walk = self._source_walk(starts) if store.shape.source is not None else None
        self.parts = self._parts() if store.slots else []
        # What surrounds a recurrent layer's inner part where its rows are not those of the packed row (adapters).
        self.around: Callable[[Tensor], AbstractContextManager[None]] | None = None
        self._part: Part | None = None  # whose turn it is inside `recur`
        self._written: set[int] = set()  # layers whose keys of new sources are in their pages
        self._pending: list[tuple[int, Tensor, tuple[Tensor, ...]]] = []
        self._bias: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """The tokens of this step, [1,T] int64."""
        return torch.tensor([[token for work in self.works for token in work.tokens]], device=self.store.device)

    def step(
        self, rows: int, tokens: int, positions: Tensor | None, segments: Tensor | None, marks: Tensor | None = None
    ) -> Packed:
        """What a model asks of a cache: this step is the state."""
        assert rows == 1
        assert tokens == self.starts[-1]
        assert positions is None
        assert segments is None
        assert marks is None  # an engine refuses models with a prefix
        return self

    def _lengths(self, rotary: Many[int]) -> int | tuple[int, ...]:
        if len(set(rotary)) == 1:
            return rotary[0]
        return tuple(length for length, count in zip(rotary, self.counts, strict=True) for _ in range(count))

    def _walk(self, tables: list[list[int]], places: np.ndarray, starts: Tensor, lengths: Tensor) -> Walk:
        page, device = self.store.page, self.store.device
        widest = max(map(len, tables), default=0)
        table = np.zeros((len(tables), max(widest, 1)), dtype=np.int32)
        for row, pages in enumerate(tables):
            table[row, : len(pages)] = pages
        owner = np.repeat(np.arange(len(tables)), self.counts)
        slots = table[owner, places // page] * page + places % page
        np.maximum(table, 0, out=table)  # pages that were given back are never looked at
        return Walk(
            table=torch.from_numpy(table).to(device),
            starts=starts,
            lengths=lengths,
            slots=torch.from_numpy(slots.astype(np.int32)).to(device),
        )

    def _source_walk(self, starts: Tensor) -> Walk:
        tables = [work.sequence.source_table for work in self.works]
        table = np.zeros((len(tables), max(max(map(len, tables)), 1)), dtype=np.int32)
        for row, pages in enumerate(tables):
            table[row, : len(pages)] = pages
        device = self.store.device
        lengths = [work.sequence.ask.source for work in self.works]
        return Walk(
            table=torch.from_numpy(table).to(device),
            starts=starts,
            lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
            slots=torch.empty(0, dtype=torch.int32, device=device),
        )

    def _parts(self) -> list[Part]:
        """Sequences by how many tokens they have in this step."""
        device = self.store.device
        by_count: dict[int, list[int]] = {}
        for number, count in enumerate(self.counts):
            by_count.setdefault(count, []).append(number)
        parts = []
        for count, members in by_count.items():
            rows = None
            if len(by_count) > 1:
                rows = torch.tensor([self.starts[n] + i for n in members for i in range(count)], device=device)
            slots = torch.tensor([self.works[n].sequence.slot for n in members], device=device)
            parts.append(Part(rows, count, slots, tuple(members)))
        return parts

    # -- what layers ask ----------------------------------------------------------------------------------------------

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        mixed = write_and_attend(
            self.store.pages[index],
            self.walks[self.store.group_of[index]],
            q[0],
            k[0],
            v[0],
            causal=scores.pattern.causal,
            window=scores.pattern.window,
            chunk=scores.pattern.chunk,
            scale=scores.scale,
            softcap=scores.softcap,
            bias=self._bias if scores.bias else None,
            sinks=scores.sinks,
        )
        return mixed.unsqueeze(0)

    def bias(self, module: PositionBias, mask: int) -> None:  # noqa: ARG002 (a causal stack: one table by distance)
        self._bias = self.biases.upto(module, self.longest, self.store.device)

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:
        flat, outs = x[0], []
        tensors = self.store.slots[index]
        for part in self.parts:
            rows = flat if part.rows is None else flat[part.rows]
            before = tuple(tensor[part.slots] for tensor in tensors)
            around = nullcontext() if self.around is None or part.rows is None else self.around(part.rows)
            self._part = part
            with around:
                out, after = run(rows.unflatten(0, (-1, part.tokens)), before, None)  # [B,t,C]
            self._pending.append((index, part.slots, after))
            outs.append(out.flatten(0, 1))
        if self.parts[0].rows is None:
            return outs[0].unsqueeze(0)
        mixed = torch.empty(flat.shape[0], outs[0].shape[-1], dtype=outs[0].dtype, device=flat.device)
        for part, out in zip(self.parts, outs, strict=True):
            mixed[part.rows] = out
        return mixed.unsqueeze(0)

    def settle(self, without: Collection[int] = ()) -> None:
        """The step has succeeded: recurrent states are what it left, but for these slots, which stay as they were."""
        for index, slots, after in self._pending:
            keep: Tensor | None = None
            if without:
                going = [i for i, slot in enumerate(slots.tolist()) if slot not in without]
                keep = torch.tensor(going, dtype=torch.int64, device=slots.device)
            for tensor, new in zip(self.store.slots[index], after, strict=True):
                tensor[slots if keep is None else slots[keep]] = new if keep is None else new[keep]
        self._pending = []

    def look(
        self,
        index: int,
        q: Tensor,
        source: Source | None,  # noqa: ARG002 (sources come in with `sources`)
        keys: SourceKeys,
        scale: float,
        dropout: float,  # noqa: ARG002
    ) -> Tensor:
        assert self.source_walk is not None
        pages = self._sourced(index, keys)
        mixed = attend(pages, self.source_walk, q[0], causal=False, window=None, scale=scale)
        return mixed.unsqueeze(0)

    def recall(self, index: int, source: Source | None, keys: SourceKeys) -> Memory:  # noqa: ARG002 (as in `look`)
        assert self._part is not None, "inside `recur`"
        pages = self._sourced(index, keys)
        sequences = [self.works[number].sequence for number in self._part.members]
        found = [pages.read(sequence.source_table, sequence.ask.source) for sequence in sequences]
        k, v = (pad_sequence(list(each), batch_first=True) for each in zip(*found, strict=True))  # [B,S,1,K]
        lengths = torch.tensor([sequence.ask.source for sequence in sequences], device=k.device)
        seen = torch.arange(k.shape[1], device=k.device) < lengths.unsqueeze(1)
        return Memory.of(k, v, seen[:, None, None])

    def _sourced(self, index: int, keys: SourceKeys) -> Pages:
        """A layer's pages of sources, those that came in with this step written."""
        pages: Pages = self.store.pages[index]
        if self.sources is not None and index not in self._written:
            k, v = keys(self.sources.hidden)
            write(pages, k[0], v[0], self.sources.slots)
            self._written.add(index)
        return pages


def source_slots(tables: Many[Many[int]], lengths: Many[int], page: int) -> Tensor:
    """Where the tokens of sources are written, [S] int32, source after source."""
    slots = [table[i // page] * page + i % page for table, n in zip(tables, lengths, strict=True) for i in range(n)]
    return torch.tensor(slots, dtype=torch.int32)


def _places(works: Many[Work], counts: list[int]) -> np.ndarray:
    """Positions of the packed tokens, [T] int64."""
    if max(counts) == 1:
        return np.array([work.start for work in works], dtype=np.int64)
    return np.concatenate([np.arange(work.start, work.start + work.count) for work in works])
