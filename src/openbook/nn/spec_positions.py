"""The values of norms and of positions, of which `spec.py` builds models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Normalisation over the last dimension: `layer` (Ba et al. 2016) or `rms` (Zhang & Sennrich 2019)."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    bias: bool = False
    offset: float = 0.0  # what is added to the stored weight: 1 where a family stores the distance from one
    weight: bool = True  # without one, `rms` is the L2 norm (times √D) and `layer` is not parametric


@dataclass(frozen=True, kw_only=True)
class QueryKeyNorm:
    """How q and k are normalised, where it is not each head alone, all by one weight [K], before the rotation.

    `over` head: each head by one weight [K]; heads: each head by a weight of its own [H,K]; width: all heads as one
    vector [H·K].
    """

    norm: Norm
    over: Literal["head", "heads", "width"] = "head"
    rotated: bool = False  # after the rotation


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """Dynamic NTK: the base grows with the length, fixed when a sequence is admitted."""

    factor: float
    original: int  # the context the model was trained for


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, §3): interpolate low frequencies, keep high ones, a ramp between; scaled attention."""

    factor: float
    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention: float = 1.0  # multiplies cos and sin
    truncate: bool = True  # whole-number borders of the ramp


@dataclass(frozen=True, kw_only=True)
class WavelengthScaling:
    """The Llama 3.1 rule: interpolate wavelengths longer than the original context, keep short ones, blend between."""

    factor: float
    original: int
    low: float = 1.0
    high: float = 4.0


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, §3): a searched factor for each frequency, other ones beyond the original context.

    Like dynamic scaling it depends on the length and is fixed when a sequence is admitted.
    """

    short: tuple[float, ...]  # divide the dim/2 frequencies up to `original` tokens
    long: tuple[float, ...]  # and of longer sequences
    original: int
    attention: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True, kw_only=True)
class NtkScaling:
    """NTK-aware scaling by a fixed factor: the base grows so that the lowest frequency is divided by `factor`.

    Described before dynamic NTK in Peng et al. 2023 (§3.1, definition 1).
    """

    factor: float


@dataclass(frozen=True, kw_only=True)
class ProportionalScaling:
    """The first `share` of the frequencies of a whole head, divided by `factor`; the others turn nothing."""

    share: float
    factor: float = 1.0


Scaling = (
    LinearScaling
    | DynamicScaling
    | YarnScaling
    | WavelengthScaling
    | LongRopeScaling
    | NtkScaling
    | ProportionalScaling
)
LengthDependent = DynamicScaling | LongRopeScaling  # fixed when a sequence is admitted


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Later tokens look sharper: q at position p is multiplied by 1 + scale · ln(1 + ⌊(p + offset) / every⌋).

    After Nakanishi 2025 (scalable softmax), in steps, as published with Llama 4.
    """

    every: int
    scale: float
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021). `dim` of the head's features are turned, in pairs (i, i + dim/2).

    `neighbours`: the pairs are (2i, 2i + 1), as in the paper.
    """

    dim: int
    theta: float = 10000.0
    scaling: Scaling | None = None
    neighbours: bool = False


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned vector for each of `count` absolute positions; the first token reads row `offset`."""

    count: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Sinusoidal:
    """Fixed waves of each position (Vaswani et al. 2017 §3.5): sine and cosine in turn, or in `halves`, sines first."""

    halves: bool = False
    base: float = 10000.0


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A learned bias for each head and bucket of relative distance, shared by the stack (Raffel et al. 2020, §2.1)."""

    heads: int
    buckets: int = 32
    distance: int = 128
    bidirectional: bool = False


@dataclass(frozen=True, kw_only=True)
class RelativeVectors:
    """A learned vector of the stack's `dim` for each relative distance, shared by its layers (He et al. 2021, §3.1).

    `span` to either side: 2 · span vectors. With `distance` they are buckets: exact up to span / 2, then widening
    logarithmically up to `distance` (He et al. 2021b, §3.2); without, every distance below `span` has its own.
    """

    span: int
    distance: int | None = None
    norm: Norm | None = None  # of each vector


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """A bias that grows with the distance, at a slope for each head; no parameters (Press et al. 2022, §3).

    The slopes of n heads fall geometrically to 2^-most; of a number that is no power of two, those of the next lower
    one come first, then every second of the next higher one. `scale` multiplies them all.
    """

    heads: int
    most: float = 8.0
    scale: float = 1.0
