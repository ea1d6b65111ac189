"""Law: what is drawn follows the distribution that the processors state (chi-square), for every way of asking.

Symbols: N draws, V vocabulary. The statistic of N draws over the ids that are expected at least 5 times is compared
with the 0.999 quantile of chi-square (Wilson & Hilferty 1931); seeds are fixed, so the test does not flicker. Ids of
probability zero must never be drawn. Seeded faults: a temperature applied twice, a number used for two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from openbook.generate import draw
from openbook.generate.draw import choose, filtered, stream, uniform
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling

N, V = 20_000, 60
WIDE = 3000  # a vocabulary for which the narrow path is taken

SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "typical": {"typical_p": 0.7},
    "all": {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
}


def quantile(freedom: int, z: float = 3.0902) -> float:
    """The 0.999 quantile of chi-square."""
    k = 2 / (9 * freedom)
    return float(freedom * (1 - k + z * math.sqrt(k)) ** 3)


def statistic(drawn: Tensor, probabilities: Tensor) -> tuple[float, float]:
    """Chi-square of counted ids and its bound; rare ids are one cell."""
    counts = torch.bincount(drawn, minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0, "an impossible id was drawn"
    expected = probabilities.double() * len(drawn)
    common = expected >= 5
    cells = torch.cat([counts[common], counts[~common].sum()[None]])
    means = torch.cat([expected[common], expected[~common].sum()[None]])
    cells, means = cells[means > 0], means[means > 0]
    return float(((cells - means) ** 2 / means).sum()), quantile(max(len(cells) - 1, 1))


def draws(logits: Tensor, sampling: Sampling, numbers: Sequence[float]) -> Tensor:
    return torch.cat([
        choose(logits.expand(len(part), -1), sampling, part)
        for part in (numbers[at : at + 500] for at in range(0, len(numbers), 500))
    ])  # fmt: skip


@pytest.mark.parametrize("vocab", [V, WIDE])
@pytest.mark.parametrize("name", SETTINGS)
def test_drawn_ids_follow_the_stated_distribution(name: str, vocab: int) -> None:
    sampling = Sampling(**SETTINGS[name])
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(5)) * 2
    stated = filtered(logits / sampling.temperature, sampling).softmax(-1)[0]
    numbers = [uniform(stream(11), i) for i in range(N if vocab == V else N // 4)]
    value, bound = statistic(draws(logits, sampling, numbers), stated)
    assert value < bound


@pytest.mark.parametrize("by", ["index", "choice", "seed"])
def test_numbers_are_uniform_along_every_axis(by: str) -> None:
    make: dict[str, Callable[[int], float]] = {
        "index": lambda i: uniform(stream(3), i),
        "choice": lambda i: uniform(stream(3, i), 0),
        "seed": lambda i: uniform(stream(i), 0),
    }
    numbers = torch.tensor([make[by](i) for i in range(N)], dtype=torch.float64)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    value, bound = statistic((numbers * 100).long(), torch.full((100,), 0.01))
    assert value < bound
    pairs = (numbers[:-1] * 10).long() * 10 + (numbers[1:] * 10).long()  # and neighbours are independent
    value, bound = statistic(pairs[::2], torch.full((100,), 0.01))
    assert value < bound


def test_penalties_and_bias_change_the_distribution_as_stated() -> None:
    sampling = Sampling(
        logit_bias={1: 1.5}, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2, seed=1
    )
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(6))
    sampler = Sampler([Row(sampling, (4, 5), seed=i, output=[7, 7, 9]) for i in range(N)], V)
    by_hand = logits[0].clone()
    by_hand[1] += 1.5
    for i in (4, 5, 7, 9):
        by_hand[i] = by_hand[i] * 1.4 if by_hand[i] < 0 else by_hand[i] / 1.4
    by_hand[7] -= 0.3 * 2 + 0.2
    by_hand[9] -= 0.3 + 0.2
    value, bound = statistic(sampler.choose(logits.expand(N, -1)), by_hand.softmax(-1))
    assert value < bound


def test_temperature_towards_zero_is_greedy() -> None:
    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(7))
    numbers = [uniform(stream(1), i) for i in range(50)]
    for temperature in (1e-3, 1e-8, 1e-38, 5e-324):
        assert torch.equal(choose(logits, Sampling(temperature=temperature), numbers), logits.argmax(-1))
    assert torch.equal(choose(logits, Sampling(temperature=0), numbers), logits.argmax(-1))


@pytest.mark.parametrize("fault", ["temperature twice", "one number for all"])
def test_the_law_sees_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(temperature=0.8)
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(5)) * 2
    numbers = [uniform(stream(11), i) for i in range(N)]
    if fault == "temperature twice":
        plain = draw.processors.temperature
        monkeypatch.setattr(draw.processors, "temperature", lambda x, t: plain(plain(x, t), t))
    else:
        numbers = [numbers[i // 200] for i in range(N)]
    value, bound = statistic(draws(logits, sampling, numbers), (logits / 0.8).softmax(-1)[0])
    assert value > bound
