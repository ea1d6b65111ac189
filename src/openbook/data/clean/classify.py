"""A classifier of good text, learned from good and bad examples: hashed words and pairs of words, logistic regression.

Of the kind that filtered GPT-3's corpus and many since (Brown et al. 2020, appendix A; fastText, Joulin et al. 2016):
fast, and easily fooled by topic: bad examples that differ from the good ones in subject teach it the subject.
The score is calibrated on documents that it did not learn from (Platt 1999), and judged on others again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from openbook.data.clean.excerpt import excerpt
from openbook.data.clean.stored import load_arrays, save_arrays, version
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import DataError, UsageError

Numbers = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Features = tuple[Places, Numbers]  # which, and how much of each; the length of the whole is 1
BUCKETS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Remove documents that a classifier takes for bad; the chance that one is good goes into `meta["quality"]`."""

    name: ClassVar[str] = "quality"

    model: Path
    """The classifier's file: `openbook data classifier GOOD BAD --out FILE`."""
    lowest: float = 0.5
    """The least chance of being good at which a document stays."""
    sample: int = 20_000
    """Characters that are read of a long document: half from its beginning, half from its middle."""

    def __call__(self, document: Document, /) -> Document | Removed:
        score = _loaded(self.model, version(self.model)).score(excerpt(document.text, self.sample))
        if score < self.lowest:
            return Removed("quality", f"{score:.3f}, {self.lowest:g} at least")
        return replace(document, meta={**document.meta, "quality": round(score, 4)})


@dataclass(frozen=True, slots=True)
class Classifier:
    """Weights of hashed features, and the two numbers that make a chance of their sum."""

    weights: Numbers  # [BUCKETS]
    slope: float
    offset: float

    def score(self, text: str) -> float:
        """The chance that a text is good, from 0 to 1."""
        return float(_chance(self.slope * self.margin(features(text)) + self.offset))

    def margin(self, found: Features) -> float:
        """The weighted sum of features, before it is calibrated."""
        places, amounts = found
        return float(self.weights[places] @ amounts)

    def save(self, path: Path) -> None:
        """Write one file without pickles, atomically."""
        used = np.flatnonzero(self.weights)
        calibration = np.array([self.slope, self.offset])
        save_arrays(path, "quality", {"places": used, "weights": self.weights[used], "calibration": calibration})

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote. Raises DataError for another file, or a damaged one."""
        arrays = load_arrays(path, "quality")
        weights = np.zeros(BUCKETS, np.float32)
        try:
            weights[arrays["places"]] = arrays["weights"]
            slope, offset = map(float, arrays["calibration"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"'{path}' is a damaged classifier ({error}): train it again.") from error
        return cls(weights, slope, offset)


@functools.lru_cache(4)
def _loaded(path: Path, _version: tuple[int, int]) -> Classifier:
    return Classifier.load(path)


# ------------------------------------------------------------------------------------------------ features

_LETTERS = np.zeros(256, np.bool_)  # bytes of words: letters and digits, and all beyond ASCII
_LETTERS[[*b"0123456789", *range(65, 91), *range(97, 123), *range(128, 256)]] = True
_LOWER = np.arange(256, dtype=np.uint64)
_LOWER[65:91] += 32
_FACTOR = 0x9E3779B97F4A7C15  # odd, so it has an inverse: hashes of words come out of one running sum
_INVERSE = pow(_FACTOR, -1, 1 << 64)


def features(text: str) -> Features:
    """The words and pairs of words of a text, in lower case, as buckets with the square roots of their counts."""
    data = np.frombuffer(text.encode(), np.uint8)
    inside = np.concatenate(([False], _LETTERS[data], [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(_LOWER[data] * _powers(_FACTOR, len(data)))))
    words = (sums[ends] - sums[starts]) * _powers(_INVERSE, len(data))[starts]
    words = _mixed(words)
    hashes = np.concatenate((words, _mixed(words[:-1] * np.uint64(3) + words[1:])))
    buckets = (hashes >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64)
    places, counts = np.unique(buckets, return_counts=True)
    amounts = np.sqrt(counts)
    return places, (amounts / np.linalg.norm(amounts)).astype(np.float32)


def _mixed(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    hashes = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)


_KEPT_POWERS: dict[int, npt.NDArray[np.uint64]] = {}


def _powers(factor: int, count: int) -> npt.NDArray[np.uint64]:
    """factor^0, factor^1 … modulo 2^64; kept, and made longer when more are needed."""
    kept = _KEPT_POWERS.get(factor)
    if kept is None or len(kept) < count:
        steps = np.full(max(count, 1 << 16), factor, np.uint64)
        steps[0] = 1
        _KEPT_POWERS[factor] = kept = np.cumprod(steps, dtype=np.uint64)
    return kept[:count]


# ------------------------------------------------------------------------------------------------ learning


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a classifier did on documents that it neither learned nor was calibrated from."""

    good: int  # documents, all of them
    bad: int
    judged: int
    area: float  # under the curve of true by false positives: the chance that a good one scores above a bad one
    accuracy: float  # at 0.5
    error: float  # between chance and truth, squared, on average (Brier); 0.25 for knowing nothing


def train(
    good: Iterable[str], bad: Iterable[str], *, sample: int = 20_000, epochs: int = 5, seed: int = 0
) -> tuple[Classifier, Report]:
    """A classifier and its report. A tenth of the documents calibrate it, and another tenth judge it.

    `sample`: characters that are read of each document. Raises DataError for fewer than 10 documents of a kind.
    """
    if min(sample, epochs) < 1:
        raise UsageError(f"`sample` and `epochs` are 1 or more: got {sample} and {epochs}.")
    kinds = [[features(excerpt(text, sample)) for text in texts] for texts in (bad, good)]
    counts = [len(kind) for kind in kinds]
    if min(counts) < 10:
        raise DataError(f"A classifier needs 10 documents of each kind: got {counts[1]} good and {counts[0]} bad.")
    random = np.random.default_rng(seed)
    parts: list[list[tuple[Features, int]]] = [[], [], []]
    for label, kind in enumerate(kinds):
        tenth = max(1, len(kind) // 10)
        for position, number in enumerate(random.permutation(len(kind))):
            parts[0 if position >= 2 * tenth else 1 + position // tenth].append((kind[number], label))
    learned, calibrating, judging = parts
    # Each kind counts the same, however many documents it has.
    weights = _descended(learned, [sum(counts) / (2 * count) for count in counts], epochs, random)
    rough = Classifier(weights, 1.0, 0.0)
    slope, offset = _calibrated([rough.margin(found) for found, _ in calibrating], [label for _, label in calibrating])
    classifier = Classifier(weights, slope, offset)
    margins = np.array([classifier.margin(found) for found, _ in judging])
    truth = np.array([label for _, label in judging])
    chances = _chance(slope * margins + offset)
    return classifier, Report(
        good=counts[1],
        bad=counts[0],
        judged=len(judging),
        area=area(margins, truth),
        accuracy=float(((chances >= 0.5) == truth).mean()),
        error=float(((chances - truth) ** 2).mean()),
    )


def _descended(
    examples: Sequence[tuple[Features, int]], worth: Sequence[float], epochs: int, random: np.random.Generator
) -> Numbers:
    """Weights by stochastic gradient descent on the logistic loss, with a step per feature (Duchi et al. 2011)."""
    weights, squares = np.zeros(BUCKETS, np.float32), np.full(BUCKETS, 1e-8, np.float32)
    for _ in range(epochs):
        for number in random.permutation(len(examples)):
            (places, amounts), label = examples[number]
            wrong = worth[label] * (float(_chance(weights[places] @ amounts)) - label)
            slope = np.float32(wrong) * amounts
            squares[places] += slope * slope
            weights[places] -= np.float32(0.5) * slope / np.sqrt(squares[places])
    return weights


def _calibrated(margins: Sequence[float], labels: Sequence[int]) -> tuple[float, float]:
    """Slope and offset that make chances of margins: Newton's method on the logistic loss with Platt's soft targets."""
    x, y = np.array(margins), np.array(labels)
    good, bad = int(y.sum()), int(len(y) - y.sum())
    target = np.where(y == 1, (good + 1) / (good + 2), 1 / (bad + 2))
    inputs = np.stack((x, np.ones(len(x))), 1)

    def loss(found: npt.NDArray[np.float64]) -> float:
        line = inputs @ found
        return float((np.logaddexp(0, line) - target * line).sum())

    found = np.zeros(2)
    for _ in range(50):
        chance = _chance(inputs @ found)
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curve, inputs.T @ (chance - target))
        while loss(found - step) > loss(found) and abs(step).max() > 1e-9:
            step /= 2
        found = found - step
    return max(1e-3, float(found[0])), float(found[1])


def area(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]) -> float:
    """The chance that a good one scores above a bad one; equal scores count half (Mann and Whitney)."""
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    good = int(truth.sum())
    bad = len(truth) - good
    return float((ranks[truth == 1].sum() - good * (good + 1) / 2) / (good * bad))


def _chance(margin: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(np.asarray(margin, np.float64) / 2))
