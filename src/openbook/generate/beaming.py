"""Beam search inside the engine: the beams of a request are sequences that share pages and move together.

A beam that has read its last token waits until its mates have read theirs (one may have been preempted); then the hunt
(beam.py) says which beam goes on with which id. The first to go on from a beam takes its sequence over, others fork it,
and a sequence from which nobody goes on gives its pages back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from openbook.generate.beam import Hunt
from openbook.generate.output import Line
from openbook.generate.plan import Sequence
from openbook.generate.requests import Generation
from openbook.generate.sampler import Sampler

Fork = Callable[[Sequence, int], Sequence]
Release = Callable[[Sequence], None]


class Beams:
    """The beams of one request. At first there is one sequence, the prompt's."""

    def __init__(self, line: Line, first: Sequence, token_bytes: Callable[[int], bytes] | None) -> None:
        self.hunt = Hunt(line.request, token_bytes)
        self.sequences = [first]
        self._row = line.row
        self._vocab = line.vocab
        self._sampler: Sampler | None = None
        self._heard: dict[Sequence, Tensor] = {}

    def hear(self, sequence: Sequence, logits: Tensor) -> bool:
        """Takes the logits [V] after a beam's last token; whether all beams have theirs."""
        self._heard[sequence] = logits.clone()
        return all(beam in self._heard for beam in self.sequences)

    def move(self, fork: Fork, release: Release) -> bool:
        """Goes on with the best beams; False when all is found, and nothing is held any more."""
        width = self.hunt.width
        first = self._sampler is None
        if self._sampler is None:
            rows = [self._row, *(self._row.copy() for _ in range(width - 1))]
            self._sampler = Sampler(rows, self._vocab)
        beams = self.sequences * width if first else self.sequences
        # One row after the other, so that the arithmetic is that of a row alone.
        scores = [self._heard[beam].log_softmax(-1) for beam in beams]
        moves = self.hunt.step(self._sampler.process(torch.stack(scores)))
        self._heard.clear()
        if not moves:
            for sequence in self.sequences:
                release(sequence)
            self.sequences = []
            return False
        self._sampler.select([beam for beam, _ in moves])
        self._sampler.commit([token for _, token in moves])
        parents = [beams[beam] for beam, _ in moves]
        taken: set[Sequence] = set()
        going = []
        for place, parent in enumerate(parents):
            going.append(fork(parent, place) if parent in taken else parent)
            taken.add(parent)
        for sequence in self.sequences:
            if sequence not in taken:
                release(sequence)
        for sequence, (_, token) in zip(going, moves, strict=True):
            sequence.ids.append(token)
        self.sequences = going
        return True

    def results(self) -> list[Generation]:
        """The best outputs, best first."""
        return self.hunt.results()
