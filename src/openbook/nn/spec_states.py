"""The values of layers that keep a state of fixed size, of which `spec.py` builds models. Selective is in spec.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openbook.nn.spec_positions import Norm


@dataclass(frozen=True, kw_only=True)
class Structured:
    """A diagonal state space that is the same for every token, S4D (Gu et al. 2022): a convolution, or a recurrence.

    One for each feature, with `state` complex numbers of which every other is the conjugate of one that is kept (half
    of `state`); then the activation and a mixing of features, by a gated linear unit where `gated`.
    """

    state: int = 64
    start: Literal["lin", "inv"] = "lin"  # of A, §4.2: S4D-Lin or S4D-Inv
    discretisation: Literal["zoh", "bilinear"] = "zoh"  # §3.1
    activation: str = "gelu"
    gated: bool = True


@dataclass(frozen=True, kw_only=True)
class StateSpaceDual:
    """The state space of Mamba 2 (Dao & Gu 2024): one decay for each head; `groups` of heads share B and C."""

    heads: int
    head_dim: int
    groups: int = 1
    state: int = 128
    kernel: int = 4
    activation: str = "silu"
    bias: bool = False
    conv_bias: bool = True
    norm: Norm | None = None  # of the gated output, each group by itself
    step_least: float = 0.0  # what the step may be, after softplus
    step_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class GatedDelta:
    """The gated delta rule (Yang et al. 2024): a state of keys and values that decays and is corrected.

    Each of the `heads` of queries and keys serves value_heads / heads of the `value_heads`.
    """

    heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    activation: str = "silu"
    norm: Norm  # of each head's output, before its gate
