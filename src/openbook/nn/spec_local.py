"""The values of patterns, and of the mixers that combine near and far or contents and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Which tokens see which. `window` w: a token sees itself and the w - 1 before it (and after it, if not causal).

    `chunk` c: it sees only those of its own stretch of c positions, counted from the beginning.
    `marked` says what the tokens are that the caller marks. prefix: they also see each other both ways (Raffel et al.
    2020, §3.2.1); global: every token also sees them (Beltagy et al. 2020, §3.1).
    """

    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    marked: Literal["prefix", "global"] | None = None

    @property
    def reach(self) -> int | None:
        """How many tokens back keys are needed at most, itself included; None: all."""
        return min((size for size in (self.window, self.chunk) if size is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class GlobalAttention:
    """A window both ways, and global tokens that see all and are seen by all (Beltagy et al. 2020, §3.1).

    The global tokens' own view of the row has q, k and v of its own. Which tokens are global, the caller marks.
    """

    heads: int
    head_dim: int
    window: int  # a token sees itself and window - 1 on either side
    bias: bool = True  # on q, k and v
    out_bias: bool = True
    dropout: float = 0.0

    @property
    def pattern(self) -> Pattern:
        """What the tokens see that are not global."""
        return Pattern(causal=False, window=self.window, marked="global")


@dataclass(frozen=True, kw_only=True)
class DisentangledAttention:
    """Attention of contents and of relative positions, each with a vector of its own (He et al. 2021, §3.1).

    The score of query i and key j is q_i·k_j + q_i·r^k_δ(i,j) + k_j·r^q_δ(i,j), all times `scale`. r^k and r^q are made
    of the stack's `RelativeVectors`: by the content's own q and k if `shared`, else by maps of their own.
    """

    heads: int
    head_dim: int
    content_to_position: bool = True  # q_i·r^k
    position_to_content: bool = True  # k_j·r^q
    shared: bool = False
    key_bias: bool = True  # on k and on the map that makes r^k; the other maps have one always
    scale: float | None = None  # None: (head_dim · number of terms) ** -0.5
    dropout: float = 0.0  # of the attention weights
    position_dropout: float = 0.0  # of the stack's vectors

    @property
    def pattern(self) -> Pattern:
        """Everything, both ways."""
        return Pattern(causal=False)

    @property
    def factor(self) -> float:
        """What scores are multiplied with."""
        terms = 1 + self.content_to_position + self.position_to_content
        return float((self.head_dim * terms) ** -0.5) if self.scale is None else self.scale


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution over neighbouring tokens of one segment, both ways, then dropout and activation."""

    kernel: int
    groups: int = 1
    activation: str = "tanh"
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MarkFirst:
    """Marks the first token of each text, where the caller marks none."""


@dataclass(frozen=True, kw_only=True)
class MarkBefore:
    """Marks all before the first `token` of each text, where the caller marks none: the question before the text."""

    token: int
