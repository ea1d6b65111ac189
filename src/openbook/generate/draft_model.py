"""Drafts of a smaller model of the same vocabulary, which keeps pages of its own (Leviathan et al. 2023).

The draft model reads what a sequence has gained since its last drafts, then writes a few ids, each step for all
sequences at once. Where its memory does not suffice a sequence gets no drafts, and nothing else happens.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from openbook.errors import Refusal
from openbook.generate.feed import quiet
from openbook.generate.output import Line
from openbook.generate.packed import Biases, Packed
from openbook.generate.pages import Pool
from openbook.generate.plan import Ask, Sequence, Work
from openbook.generate.requests import rotary_of
from openbook.generate.speculate import DraftModel, Proposal
from openbook.generate.store import Store
from openbook.nn.model import LanguageModel
from openbook.nn.serving import form_of, logical, serve_form
from openbook.nn.state import PerToken

CHUNK = 512  # tokens that are read at once


class ModelDrafter:
    """Drafts by `draft` for sequences of `model`, within `memory` bytes."""

    def __init__(self, draft: LanguageModel, model: LanguageModel, memory: int, dtype: torch.dtype) -> None:
        if draft.spec.embed.vocab != model.spec.embed.vocab:
            raise Refusal(
                f"A draft model needs the vocabulary of its model: got {draft.spec.embed.vocab} ids, "
                f"and the model has {model.spec.embed.vocab}."
            )
        if draft.spec.source is not None or not all(isinstance(state, PerToken) for state in draft.states):
            raise Refusal("A draft model must be a decoder of attention layers: its state has to go back a few tokens.")
        if form_of(draft) is None and draft.device.type == "cpu":
            serve_form(draft, "fp32" if draft.embed.tokens.weight.dtype == torch.float32 else "bf16")
        self.draft = draft
        self.cost = 0.05 + _size(draft) / max(1, _size(model))
        self.store = Store(draft, memory, dtype)
        self.pool = Pool(self.store.shape, memory, prefix_cache=False)
        self.biases = Biases()
        self._known: dict[Sequence, Sequence] = {}  # the model's sequence → the draft's own, the longest unused first
        self._current: list[tuple[Sequence, Sequence, int]] = []

    def propose(self, sequences: Many[Sequence], lines: Many[Line], counts: Many[int]) -> list[Proposal]:
        self._current = []
        limit = self.draft.spec.context
        fit = []
        for sequence, line, count in zip(sequences, lines, counts, strict=True):
            own = self._known.pop(sequence, None) or self._new()
            self._known[sequence] = own
            self._agree(own, sequence)
            rotary = rotary_of(self.draft, len(line.request.prompt) + line.request.room)
            self._current.append((sequence, own, rotary))
            fit.append(count if limit is None else min(count, limit - len(sequence.ids)))
        with quiet(self.draft):
            return DraftModel(self._next).propose([line.row for line in lines], fit)

    def _new(self) -> Sequence:
        return Sequence(Ask(key=0, ids=[], room=0, root=b""), len(self.pool.groups))

    def _agree(self, own: Sequence, sequence: Sequence) -> None:
        """What the draft has read counts as far as it is what was written; at least one token is left to read."""
        same, most = 0, min(own.computed, len(sequence.ids) - 1)
        if own.ids[:most] == sequence.ids[:most]:
            same = most
        else:
            same = next(i for i in range(most) if own.ids[i] != sequence.ids[i])
        own.computed = same
        own.ids = list(sequence.ids)

    def _next(self, live: Many[int], drafted: Many[Many[int]]) -> Tensor:
        """Logits [b,V] after what each sequence has and its drafts so far; NaN where there was no memory."""
        wanted: list[tuple[int, Sequence, int]] = []
        vocab = self.draft.spec.embed.vocab
        out = torch.full((len(live), vocab), torch.nan)
        for row, (number, drafts) in enumerate(zip(live, drafted, strict=True)):
            sequence, own, rotary = self._current[number]
            own.ids = [*sequence.ids, *drafts]
            if self._room(own):
                wanted.append((row, own, rotary))
        while wanted:
            left, works, rotaries, ends = CHUNK, [], [], []
            for row, own, rotary in wanted:
                count = min(left, len(own.ids) - own.computed)
                if not count:
                    continue
                works.append(Work(own, own.computed, count, own.computed + count == len(own.ids)))
                rotaries.append(rotary)
                ends.append(row)
                left -= count
            state = Packed(self.store, works, rotaries, self.biases)
            hidden = self.draft.hidden(state.ids, cache=state)[0]
            for number, (work, row) in enumerate(zip(works, ends, strict=True)):
                work.sequence.computed = work.start + work.count
                if work.final:
                    out[row] = self.draft.head(hidden[state.starts[number + 1] - 1 : state.starts[number + 1]])[0]
            wanted = [entry for entry in wanted if entry[1].computed < len(entry[1].ids)]
        return out

    def _room(self, own: Sequence) -> bool:
        """Pages for a sequence, if need be those of one that has not asked for the longest time."""
        current = {known for _, known, _ in self._current}
        while not self.pool.grow(own, len(own.ids)):
            idle = next((s for s, known in self._known.items() if known not in current), None)
            if idle is None:
                return False
            self.forget(idle)
        return True

    def forget(self, sequence: Sequence) -> None:
        own = self._known.pop(sequence, None)
        if own is not None:
            self.pool.release(own)


def _size(model: LanguageModel) -> int:
    """Parameters, in whatever form they are kept."""
    held = logical(model)
    return sum(held.shape(name).numel() for name in held)


def share_of(draft: LanguageModel, model: LanguageModel) -> float:
    """The draft model's share of the memory: by what a token costs in each."""
    own, other = (sum(state.numbers for state in one.states if isinstance(state, PerToken)) for one in (draft, model))
    return min(0.5, own / max(1, own + other))  # a recurrent model keeps nothing by the token, and yet it keeps
