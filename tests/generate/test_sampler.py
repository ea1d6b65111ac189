"""The sampler: batches of unlike requests, history, and randomness that belongs to the request alone."""

from __future__ import annotations

import math
import random

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


ALIKE = [
    (Sampling(temperature=0.0, max_tokens=3, seed=1, top_k=4), Sampling(temperature=0.0, stop=("x",), n=2, top_p=0.3)),
    (Sampling(min_tokens=2, max_tokens=9), Sampling(min_tokens=4)),
    (Sampling(logit_bias={1: 2.0, 3: 1.0}), Sampling(logit_bias={3: 1.0, 1: 2.0}, logprobs=2)),
]
UNLIKE = [
    (Sampling(), Sampling(temperature=0.9)),
    (Sampling(temperature=0.0), Sampling(temperature=0.0, min_tokens=1)),
    (Sampling(temperature=0.0), Sampling(temperature=0.0, banned=(1,))),
    (Sampling(top_k=3), Sampling(top_k=4)),
    (Sampling(logit_bias={1: 2.0}), Sampling(logit_bias={1: 3.0})),
]


def test_rows_that_act_alike_are_one_group() -> None:
    for a, b in ALIKE:
        assert len(Sampler([Row(a, [1]), Row(b, [2])], V).groups) == 1
    for a, b in UNLIKE:
        assert len(Sampler([Row(a, [1]), Row(b, [2])], V).groups) == 2


def test_an_updated_sampler_is_a_fresh_one() -> None:
    settings = [*REQUESTS, Sampling(frequency_penalty=0.5, repetition_penalty=1.3), Sampling(temperature=0.0, seed=2)]
    rng = random.Random(1)
    sampler, live = Sampler([], V), []
    for step in range(60):
        if rng.random() < 0.4:
            live = [row for row in live if rng.random() < 0.8]
            live += [Row(rng.choice(settings), [rng.randrange(V)] * 3, seed=step) for _ in range(rng.randrange(3))]
            rng.shuffle(live)
            sampler.update(live)
        if rng.random() < 0.2 and live:
            sampler.select([rng.randrange(len(live)) for _ in range(rng.randrange(1, 6))])
            live = list(sampler.rows)
        if rng.random() < 0.3 and live:  # a row may also be written elsewhere: by speculation
            live[0].add(rng.randrange(V))
        if not live:
            continue
        logits = made(len(live), seed=step)
        fresh = Sampler([row.copy() for row in live], V)
        assert torch.equal(sampler.process(logits), fresh.process(logits))
        tokens = sampler.choose(logits).tolist()
        assert tokens == fresh.choose(logits).tolist()
        sampler.commit([max(token, 0) for token in tokens])


@pytest.mark.parametrize("sampling", [REQUESTS[4], Sampling(repetition_penalty=2.0)])
def test_what_was_seen_stays_seen(sampling: Sampling) -> None:
    holds_after_updates(sampling)


def test_the_test_of_updates_sees_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.generate.history.Counted.current", lambda _: True)
    with pytest.raises(AssertionError):
        holds_after_updates(Sampling(repetition_penalty=2.0))


def holds_after_updates(sampling: Sampling) -> None:
    row, mate = Row(sampling, [1, 2], output=[4]), Row(sampling, [3])
    sampler = Sampler([row], V)
    sampler.commit([7])
    assert torch.equal(sampler.process(made(1)), by_hand(row, made(1)))
    sampler.update([mate, row])
    assert torch.equal(sampler.process(made(2))[1:], by_hand(row, made(2)[1:]))
    sampler.commit([1, V - 1])  # the highest id too: it fills gaps until it is written
    assert torch.equal(sampler.process(made(2))[1:], by_hand(row, made(2)[1:]))


def by_hand(row: Row, logits: torch.Tensor) -> torch.Tensor:
    """Bias, repetition, frequency and presence as `processors.py` states them."""
    s, out = row.sampling, logits.clone()
    for i, number in s.logit_bias.items():
        out[0, i] += number
    for i in {*row.prompt, *row.output} if s.repetition_penalty != 1 else ():
        out[0, i] = out[0, i] * s.repetition_penalty if out[0, i] < 0 else out[0, i] / s.repetition_penalty
    for i in set(row.output):
        out[0, i] = out[0, i] - s.frequency_penalty * row.output.count(i) - s.presence_penalty
    return out
