"""Feeding a model: prompts in, then one token per row and step, logits of the last tokens out.

`Feed` uses a cache; `SlowFeed` runs the whole rows again at every step and keeps nothing: it is the reference. Both
read ragged prompts (padded on the right with segment 0), can be told to go on with other rows in another order
(samples, beams, rows that are done), and remember the source of an encoder-decoder.

Symbols: B rows, T prompt columns, S source columns, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate.cache import Contiguous
from openbook.generate.requests import Request
from openbook.nn.model import LanguageModel

SCORED = 256  # prompt tokens whose logits are held at once

# What a prompt's hidden states are given to, when their logits are wanted: (row, first column, logits [T,V]).
Listener = Callable[[int, int, Tensor], None]


class Source:
    """The encoder's output for a batch of sources: computed once, [B,S,D]."""

    def __init__(self, model: LanguageModel, sources: Sequence[Sequence[int]]) -> None:
        ids, self.segments = padded(sources, model.device)
        self.encoded = model.encode_source(ids, self.segments)

    def select(self, places: Tensor) -> None:
        """Goes on with these rows."""
        self.encoded = self.encoded.index_select(0, places)
        self.segments = None if self.segments is None else self.segments.index_select(0, places)


class Feeder(Protocol):
    """What the loops ask of either feed."""

    def first(self, listener: Listener | None = None) -> Tensor:
        """Reads the prompts; logits [B,V] of their last tokens."""
        ...

    def next(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each row, [B]; logits [B,V] of what follows."""
        ...

    def select(self, places: Sequence[int]) -> None:
        """Goes on with these rows, in this order; rows may be repeated."""
        ...


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids [B,T], padded on the right with 0, and segments [B,T]; None when nothing was padded."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64, device=device)
    if all(len(row) == width for row in rows):
        return ids, None
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device) < lengths.unsqueeze(1)).long()


def score(model: LanguageModel, hidden: Tensor, row: int, start: int, listener: Listener) -> None:
    """Hands the logits of hidden states [T,D] to `listener`, a few at a time."""
    for part in hidden.split(SCORED):
        listener(row, start, model.head(part))
        start += len(part)


def prefix(model: LanguageModel, ids: Tensor, segments: Tensor | None) -> Tensor | None:
    """The tokens of prompts [B,T] that see each other both ways: all, if the model has such a pattern; else None."""
    if not model.spec.prefixed:
        return None
    return torch.ones_like(ids, dtype=torch.bool) if segments is None else segments != 0


class Feed:
    """Reads with a `Contiguous` cache of `capacity` tokens a row. `chunk`: prompt columns read at once; None: all."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        capacity: int,
        *,
        length: int | None = None,
        chunk: int | None = None,
        source: Source | None = None,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.chunk = chunk
        self.source = source
        self.cache = Contiguous.of(model, len(prompts), capacity, length=length)

    def first(self, listener: Listener | None = None) -> Tensor:
        ids, segments = padded(self.prompts, self.model.device)
        width = ids.shape[1]
        chunk = self.chunk or width
        last: list[Tensor | None] = [None] * len(self.prompts)
        for start in range(0, width, chunk):
            end = min(start + chunk, width)
            marks = prefix(self.model, ids, segments)
            if marks is not None and end - start < width:
                raise InputError(f"This model reads its prompt both ways, hence whole: not {chunk} columns at once.")
            hidden = self._read(ids[:, start:end], None if segments is None else segments[:, start:end], marks)
            for row, prompt in enumerate(self.prompts):
                if start < len(prompt) <= end:
                    last[row] = hidden[row, len(prompt) - 1 - start]
                if listener is not None:
                    score(self.model, hidden[row, : max(0, len(prompt) - start)], row, start, listener)
        return self.model.head(torch.stack([state for state in last if state is not None]))

    def next(self, tokens: Tensor) -> Tensor:
        return self.model.head(self._read(tokens.unsqueeze(1), None)[:, 0])

    def _read(self, ids: Tensor, segments: Tensor | None, marks: Tensor | None = None) -> Tensor:
        if self.source is None:
            return self.model.hidden(ids, segments=segments, cache=self.cache, marks=marks)
        return self.model.hidden(
            ids,
            segments=segments,
            cache=self.cache,
            encoded=self.source.encoded,
            source_segments=self.source.segments,
        )

    def select(self, places: Sequence[int]) -> None:
        if list(places) == list(range(self.cache.rows)):
            return
        index = torch.tensor(places, device=self.model.device)
        self.cache.reorder(index)
        if self.source is not None:
            self.source.select(index)


class SlowFeed:
    """Reads whole rows at every step: slow, and nothing can be stale."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        length: int | None = None,
        source: Source | None = None,
    ) -> None:
        self.model = model
        self.texts = [list(prompt) for prompt in prompts]
        self.prefixes = [len(prompt) if model.spec.prefixed else 0 for prompt in prompts]
        self.length = length
        self.source = source

    def first(self, listener: Listener | None = None) -> Tensor:
        ids, segments = padded(self.texts, self.model.device)
        ends = torch.tensor(self.prefixes, device=ids.device).unsqueeze(1)
        hidden = self.model.hidden(
            ids,
            segments=segments,
            marks=torch.arange(ids.shape[1], device=ids.device) < ends if any(self.prefixes) else None,
            length=self.length,
            encoded=None if self.source is None else self.source.encoded,
            source_segments=None if self.source is None else self.source.segments,
        )
        if listener is not None:
            for row, text in enumerate(self.texts):
                score(self.model, hidden[row, : len(text)], row, 0, listener)
        return self.model.head(torch.stack([hidden[row, len(text) - 1] for row, text in enumerate(self.texts)]))

    def next(self, tokens: Tensor) -> Tensor:
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
        return self.first()

    def select(self, places: Sequence[int]) -> None:
        self.texts = [list(self.texts[place]) for place in places]
        self.prefixes = [self.prefixes[place] for place in places]
        if self.source is not None:
            self.source.select(torch.tensor(places, device=self.model.device))


@contextmanager
def quiet(model: LanguageModel) -> Iterator[None]:
    """Without gradients and dropout; the model is as it was afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()


def feeder(
    model: LanguageModel, requests: Sequence[Request], *, cached: bool = True, chunk: int | None = None
) -> Feeder:
    """The feed of some requests that run together; they share what length-dependent scaling is fixed to."""
    sources = [request.source for request in requests if request.source is not None]
    source = Source(model, sources) if sources else None
    prompts = [request.prompt for request in requests]
    length = requests[0].rotary or None
    if not cached:
        return SlowFeed(model, prompts, length=length, source=source)
    capacity = max(len(p) for p in prompts) + max(request.room for request in requests)
    return Feed(model, prompts, capacity, length=length, chunk=chunk, source=source)
