"""Which ids a row has seen and how often it wrote them: what penalties look at, in the size of the history.

A penalty touches the few ids of a row's past, so its arithmetic runs on them alone, gathered from the logits and
scattered back. `Seen` is one row's past on the host, `Counted` that of a group of rows as tensors on the device. Both
grow by what is written; nothing has the size of the vocabulary.

Symbols: b rows, M ids of the longest past (and room), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openbook.generate import processors

ROOM = 64  # ids that a group may see before its tensors are made anew


class Seen:
    """The distinct ids of one row, in the order in which they came, and how often each was written."""

    def __init__(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        self.place = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self.ids = list(self.place)
        self.counts = [0] * len(self.ids)
        for token in output:
            self.add(token)

    def add(self, token: int) -> None:
        """Counts an id that was written."""
        place = self.place.setdefault(token, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token)
            self.counts.append(0)
        self.counts[place] += 1

    def copy(self) -> Seen:
        """An independent continuation."""
        other = Seen((), ())
        other.place, other.ids, other.counts = dict(self.place), list(self.ids), list(self.counts)
        return other


class Counted:
    """The pasts of some rows as tensors [b,M]. Places beyond a row's ids name an id that it has not seen."""

    def __init__(
        self, pasts: Sequence[Seen], outputs: Sequence[Sequence[int]], vocab: int, device: torch.device
    ) -> None:
        self.pasts, self.outputs = pasts, outputs
        width = min(max(len(past.ids) for past in pasts) + ROOM, vocab)
        # The highest ids are rarely written; once one of these is, all is made anew.
        self.spare = [next((i for i in range(vocab - 1, -1, -1) if i not in past.place), -1) for past in pasts]
        gaps = [width - len(past.ids) for past in pasts]
        ids = [[*past.ids, *[i] * gap] for past, i, gap in zip(pasts, self.spare, gaps, strict=True)]
        counts = [[*past.counts, *[0] * gap] for past, gap in zip(pasts, gaps, strict=True)]
        real = [[True] * len(past.ids) + [False] * gap for past, gap in zip(pasts, gaps, strict=True)]
        self.ids = torch.tensor(ids, dtype=torch.int64, device=device)
        self.counts = torch.tensor(counts, dtype=torch.float32, device=device)
        self.real = torch.tensor(real, device=device)
        self.taken = [len(output) for output in outputs]

    def current(self) -> bool:
        """Takes what the rows have written since; False where it does not fit and all is to be made anew."""
        lines: list[int] = []
        columns: list[int] = []
        for line, (past, output) in enumerate(zip(self.pasts, self.outputs, strict=True)):
            if len(output) == self.taken[line]:
                continue
            new = {past.place[token] for token in output[self.taken[line] :]}
            if len(past.ids) > self.ids.shape[1] or self.spare[line] in past.place or len(output) < self.taken[line]:
                return False
            lines += [line] * len(new)
            columns += new
            self.taken[line] = len(output)
        if lines:
            index = torch.tensor([lines, columns], device=self.ids.device)
            pairs = list(zip(lines, columns, strict=True))
            tokens = torch.tensor([self.pasts[line].ids[column] for line, column in pairs], device=self.ids.device)
            counts = torch.tensor([float(self.pasts[line].counts[column]) for line, column in pairs])
            self.ids[index[0], index[1]] = tokens
            self.counts[index[0], index[1]] = counts.to(self.ids.device)
            self.real[index[0], index[1]] = True
        return True

    def penalise(self, logits: Tensor, repetition: float, frequency: float, presence: float) -> Tensor:
        """Steps 2 and 3 of `processors.py` on logits [b,V] float32."""
        values = logits.gather(1, self.ids)  # [b,M]
        if repetition != 1.0:
            values = processors.repetition_penalty(values, self.real, repetition)
        if frequency or presence:
            values = processors.output_penalties(values, self.counts, frequency, presence)
        return logits.scatter(1, self.ids, values)
