"""The sampler: batches of unlike requests, history, and randomness that belongs to the request alone."""

from __future__ import annotations

import math

import pytest
import torch

from openbook.errors import InputError, OpenbookError
from openbook.generate.draw import argmax, categorical, choose, stream, uniform
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling

V = 40


def made(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def run(rows: list[Row], steps: int = 6) -> list[list[int]]:
    """Tokens of each row when the logits are a function of the row's own past."""
    sampler = Sampler(rows, V)
    for _ in range(steps):
        logits = torch.cat(
            [made(1, seed=sum(r.prompt) * 1000 + sum(r.output) * 7 + len(r.output)) for r in sampler.rows]
        )
        sampler.commit(sampler.choose(logits).tolist())
    return [row.output for row in sampler.rows]


REQUESTS = [
    Sampling(seed=1),
    Sampling(seed=2, temperature=0.5, top_k=5),
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, repetition_penalty=1.5, no_repeat_ngram=1),
    Sampling(seed=1, frequency_penalty=0.5, presence_penalty=0.1, logit_bias={3: 1.0}),
    Sampling(seed=9, forced=(1, 2, 3), top_p=0.5),
    Sampling(seed=9, min_tokens=4, banned=(8, 9)),
]


def rows() -> list[Row]:
    return [Row(s, [i, i + 1, i + 2], frozenset({0, 1, 2, 3, 4, 5})) for i, s in enumerate(REQUESTS)]


def test_a_request_gets_the_same_tokens_in_any_company() -> None:
    alone = [run([row])[0] for row in rows()]
    assert run(rows()) == alone
    assert run(rows()[::-1]) == alone[::-1]
    assert run([*rows(), *rows()]) == alone * 2


def test_seed_choice_and_index_give_different_numbers() -> None:
    numbers = {uniform(stream(s, c), i) for s in (0, 1, -1, 2**63, 2**64 - 2) for c in range(4) for i in range(10)}
    assert len(numbers) == 5 * 4 * 10
    assert run([Row(Sampling(), [1])]) != run([Row(Sampling(), [1])])  # no seed: fresh randomness
    assert Row(Sampling(), [1]).seed != Row(Sampling(), [1]).seed


def test_forced_ngrams_and_minimum() -> None:
    assert run([Row(REQUESTS[5], [1])])[0][:3] == [1, 2, 3]
    tokens = run([Row(REQUESTS[3], [0, 1, 2])], steps=20)[0]
    assert len({*tokens, 0, 1, 2}) == 23
    assert not {0, 1, 2, 3, 4, 5} & set(run([Row(REQUESTS[6], [1], frozenset(range(6)))])[0][:4])


def test_select_splits_drops_and_keeps_history() -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=2.0, no_repeat_ngram=2, presence_penalty=0.3)
    sampler = Sampler([Row(sampling, [1]), Row(sampling, [2])], V)
    sampler.commit([5, 6])
    sampler.select([1, 1, 0])
    sampler.commit([7, 8, 9])
    assert [row.output for row in sampler.rows] == [[6, 7], [6, 8], [5, 9]]
    fresh = Sampler([Row(sampling, row.prompt, output=list(row.output)) for row in sampler.rows], V)
    logits = made(3)
    assert torch.equal(sampler.process(logits), fresh.process(logits))


def test_argmax_is_exact_and_takes_the_lowest_of_equals() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-math.inf, -5.0, -math.inf, -5.0]])
    assert argmax(x).tolist() == [1, 0, 1]
    assert argmax(x.bfloat16()).tolist() == [1, 0, 1]
    assert argmax(torch.tensor([[math.nan, 1.0], [-math.inf, -math.inf]])).tolist() == [-1, -1]


def test_draws_reach_both_ends_and_nothing_impossible() -> None:
    x = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert categorical(x, [0.0]).tolist() == [1]
    assert categorical(x, [1 - 2**-53]).tolist() == [3]
    assert categorical(torch.full((1, 5), -math.inf), [0.5]).tolist() == [-1]
    assert categorical(torch.full((1, 5), math.nan), [0.5]).tolist() == [-1]


def test_impossible_rows_on_the_narrow_path() -> None:
    x = torch.randn(3, 4000)
    x[1] = -math.inf
    x[2, 5] = math.nan
    for settings in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {}):
        drawn = choose(x, Sampling(**settings), [0.3] * 3).tolist()
        assert drawn[0] >= 0
        assert drawn[1:] == [-1, -1]


def test_nothing_left_says_what_forbids_it() -> None:
    sampler = Sampler([Row(Sampling(temperature=0, no_repeat_ngram=1), list(range(V)))], V)
    with pytest.raises(InputError, match=r"output token 0 \(prompt of 40 tokens\).*no_repeat_ngram=1"):
        sampler.commit(sampler.choose(made(1)).tolist())
    sampler = Sampler([Row(Sampling(), [1])], V)
    with pytest.raises(OpenbookError, match="not numbers"):
        sampler.commit(sampler.choose(torch.full((1, V), math.nan)).tolist())


def test_prompt_ids_beyond_the_head_are_ignored_by_penalties() -> None:
    sampler = Sampler([Row(Sampling(repetition_penalty=2.0, temperature=0.0), [V + 3, 1])], V)
    assert sampler.process(torch.ones(1, V))[0].tolist() == [1.0, 0.5, *[1.0] * (V - 2)]
