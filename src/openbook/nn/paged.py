"""Attention over pages of keys and values, for the engine: write new tokens, then mix for packed query rows.

The one place where the way is chosen: the native operator (native/paged.cpp) on the CPU, or its definition in
`paged_reference`. Both walk the keys on a fixed grid in absolute order (see there), so that what a query gets depends on
its own numbers and the keys and values it sees, and on nothing else; the native one bit for bit: not on what else is in
the step, how a prompt was cut, which pages hold it, nor on the number of threads. What stands in unwritten places of a page
reaches nobody, not even as NaN. Symbols: shapes.py; N sequences, P pages of the longest.
"""

from __future__ import annotations

from torch import Tensor

from openbook.nn import paged_reference as reference
from openbook.nn.paged_reference import Rule
from openbook.nn.pages import Layout, Pages, Walk

__all__ = ["Layout", "Pages", "Walk", "attend", "write", "write_and_attend"]


def write(pages: Pages, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store k [T,G,K] and v [T,G,V], fp32 or bf16, at `slots` [T]; -1: nowhere. Latent pages ignore v."""
    reference.write(pages, k, v, slots)


def attend(
    pages: Pages,
    walk: Walk,
    q: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Mix values by scores. q [T,H,K], fp32 or bf16 → [T,H,V] in the type of q.

    Row t of sequence i stands at p = lengths[i] - starts[i+1] + t. With `causal` it sees key j if j ≤ p and p - j < window;
    without (cross attention) all of its lengths[i]. Scores are scale · q·k, then softcap · tanh(s / softcap), then
    `bias` [H, longest] at p - j is added; `sinks` [H] are one more score of each head that has no value. Rows of no
    sequence, and those that see nothing, get zeros.
    """
    return reference.attend(pages, walk, q, Rule(causal, window, scale, softcap, bias, sinks))


def write_and_attend(
    pages: Pages,
    walk: Walk,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`write` at walk.slots, then `attend`: what a layer of the engine asks for, in one native call."""
    reference.write(pages, k, v, walk.slots)
    return reference.attend(pages, walk, q, Rule(causal, window, scale, softcap, bias, sinks))
