"""Beam search as whoever drives it sees it: a `Hunt` and log-probabilities, no model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate.beam import Hunt
from openbook.generate.constraints import Constraint, Vocabulary
from openbook.generate.grammars import Choice
from openbook.generate.requests import Generation, Request
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling

V, END = 6, 0


def scores_after(ids: Sequence[int]) -> Tensor:
    seed = sum((i + 1) * 11**place for place, i in enumerate(ids)) % 2**31
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def drive(sampling: Sampling, room: int, constraint: Constraint | None = None) -> list[Generation]:
    hunt = Hunt(Request(0, (1,), sampling, room, frozenset({END}), 0))
    rows = [
        Row(sampling, (1,), frozenset({END}), constraint=None if constraint is None else constraint.copy())
        for _ in range(hunt.width)
    ]
    sampler = Sampler(rows, V)
    while moves := hunt.step(sampler.process(torch.stack([scores_after(row.output) for row in sampler.rows]))):
        assert len(moves) == hunt.width
        beams, tokens = zip(*moves, strict=True)
        sampler.select(beams)
        sampler.commit(tokens)
        assert [row.output for row in sampler.rows] == hunt.texts
    return hunt.results()


def likelihood(ids: Sequence[int]) -> float:
    return sum(float(scores_after(ids[:place])[i]) for place, i in enumerate(ids))


def test_with_beams_enough_the_best_of_all_is_found() -> None:
    sampling = Sampling(beams=40, n=3, temperature=0.0, length_penalty=0.0, early_stopping="never")
    every = [
        (*some, END) for length in range(3) for some in itertools.product(range(1, V), repeat=length)
    ] + list(itertools.product(range(1, V), repeat=3))  # fmt: skip
    best = sorted(every, key=likelihood, reverse=True)[:3]
    found = drive(sampling, 3)
    assert [tuple(g.ids) for g in found] == best
    assert [g.score for g in found] == pytest.approx([likelihood(ids) for ids in best], rel=1e-5)
    assert [g.finish for g in found] == ["stop" if ids[-1] == END else "length" for ids in best]


@pytest.mark.parametrize("beams", [2, 4, 6])
def test_beams_keep_the_grammar_and_invent_nothing(beams: int) -> None:
    pytest.importorskip("llguidance")
    texts = ("aab", "abcd", "e")
    vocabulary = Vocabulary([b"", *(bytes([96 + i]) for i in range(1, V))], [END])
    sampling = Sampling(beams=beams, n=beams, temperature=0.0, grammar=Choice(texts))
    constraint = Constraint.compile(vocabulary, Choice(texts))
    found = drive(sampling, 9, constraint)
    truth = [(*(ord(c) - 96 for c in text), END) for text in texts]
    assert {tuple(g.ids) for g in found} <= set(truth)
    assert len({tuple(g.ids) for g in found}) == len(found) == min(beams, 3)


def test_nothing_possible_is_said() -> None:
    with pytest.raises(InputError, match="No beam of prompt 0 could be finished"):
        drive(Sampling(beams=2, temperature=0.0, logit_bias={i: -float("inf") for i in range(V)}), 4)
