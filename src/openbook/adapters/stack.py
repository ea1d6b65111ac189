"""The low-rank pairs of many adapters on one module, run together: rows sorted by adapter, two grouped products.

Pairs of one rank are kept in slots of one tensor, so that a step costs the same few operations however many adapters
its rows have. A rank has a stack of its own: padding one to another's would let a loaded adapter change how a running
one is summed. Symbols: nn/shapes.py; E slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from openbook.adapters.product import grouped_rows

Rows = Tensor | slice
Chosen = tuple[tuple[str, Rows], ...]


class Grouping(NamedTuple):
    """Rows sorted by slot: their indices [n], and where each slot's end [E]; None where no row has a slot."""

    order: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Step:
    """Which rows belong to which adapter: those of the decoder's (or only) tokens, and of the encoder's.

    What is worked out from that is kept for the step: the modules ask for the same again and again.
    """

    rows: Chosen = ()
    source: Chosen = ()
    known: dict[tuple[bool, tuple[str, ...], int], Grouping | None] = field(default_factory=dict)

    def grouping(self, source: bool, names: tuple[str, ...], tokens: int, device: torch.device) -> Grouping | None:
        """The rows of the slots' adapters, of so many tokens."""
        key = (source, names, tokens)
        if key not in self.known:
            self.known[key] = _grouping(self.source if source else self.rows, names, tokens, device)
        return self.known[key]


def _grouping(chosen: Chosen, names: Sequence[str], tokens: int, device: torch.device) -> Grouping | None:
    parts: list[Tensor] = []
    ends: list[int] = []
    count = 0
    for name in names:
        for one, rows in chosen:
            if name and one == name:
                index = torch.arange(tokens, device=device)[rows] if isinstance(rows, slice) else rows.to(device)
                parts.append(index)
                count += len(index)
        ends.append(count)
    if not count:
        return None
    return Grouping(torch.cat(parts), torch.tensor(ends, dtype=torch.int32, device=device))


class Held(NamedTuple):
    """The slots: an adapter's name or '' each, down [E,R,in], up [E,out,R] with the scale in it."""

    names: tuple[str, ...]
    down: Tensor
    up: Tensor


class Stack:
    """Pairs of one rank. What a running step reads is replaced whole, or written where no row looks."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self.held = Held(("",), torch.zeros_like(down).unsqueeze(0), torch.zeros_like(up).unsqueeze(0))

    @property
    def rank(self) -> int:
        """R."""
        return self.held.down.shape[1]

    @property
    def names(self) -> set[str]:
        """Whose pairs there are."""
        return {name for name in self.held.names if name}

    @property
    def nbytes(self) -> int:
        """Bytes of one pair."""
        return self.held.down[0].nbytes + self.held.up[0].nbytes

    def add(self, name: str, down: Tensor, up: Tensor) -> None:
        """Take a pair into a free slot; with none, there are twice as many from then on."""
        held = self.held
        if "" not in held.names:
            more = len(held.names)
            held = Held(held.names + ("",) * more, *(torch.cat([t, torch.zeros_like(t)]) for t in held[1:]))
        slot = held.names.index("")
        held.down[slot] = down
        held.up[slot] = up
        self.held = held._replace(names=(*held.names[:slot], name, *held.names[slot + 1 :]))

    def drop(self, name: str) -> None:
        """Free a slot."""
        self.held = self.held._replace(names=tuple("" if one == name else one for one in self.held.names))

    def apply(self, step: Step, source: bool, x: Tensor, y: Tensor) -> Tensor:
        """y [tokens,out] with what the adapters add for their rows of x [tokens,in]."""
        held = self.held
        grouping = step.grouping(source, held.names, len(x), x.device)
        if grouping is None:
            return y
        order, ends = grouping
        low = grouped_rows(x[order].float(), held.down, ends)  # [n,R]
        new = (y[order].float() + grouped_rows(low, held.up, ends)).to(y.dtype)  # [n,out]
        if y.requires_grad or new.requires_grad:
            return y.index_copy(0, order, new)
        return y.index_copy_(0, order, new)  # the module's output is nobody else's yet
