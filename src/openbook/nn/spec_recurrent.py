"""Specs of recurrent networks, and of what is read off all layers of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cell = Literal["rnn", "lstm", "gru"]


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """A recurrent network of one layer: Elman 1990, LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014).

    direction: forward · both, two networks side by side that each read the whole input (Schuster & Paliwal 1997) ·
    apart, two that each read their half of it, so that neither ever hears of the other (Peters et al. 2018).
    """

    cell: Cell = "lstm"
    hidden: int
    activation: str = "tanh"  # of the plain network; the gated ones have their own
    bias: bool = True
    direction: Literal["forward", "both", "apart"] = "forward"
    projection: int | None = None  # of an LSTM's output, to this width (Sak et al. 2014)


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """Recurrent layers that look at the source at every token.

    look: before, with the state so far, and what is seen enters the first cell (Bahdanau et al. 2015) · after, with the
    state of the last cell (Luong et al. 2015 §3.1) · fed, the same, and the output enters with the next token (§3.3).
    score of state s and source h: additive, v·tanh(W s + U h), which is Luong's "concat" too · dot, s·h · general,
    s·W h. start of all states: zeros, or tanh of a linear map of the source's last state, or, where the source is read
    both ways, of its first state backwards (Bahdanau) or of both its ends.
    readout of state s, token y and what is seen c: the state · tanh W[c;s] · maxout of W[s before;y;c].
    """

    cell: Cell = "gru"
    hidden: int
    layers: int = 1
    bias: bool = True
    look: Literal["before", "after", "fed"] = "after"
    score: Literal["additive", "dot", "general"] = "additive"
    align: int | None = None  # width of an additive score; None: hidden
    start: Literal["zeros", "last", "first", "ends"] = "last"
    readout: Literal["state", "tanh", "maxout"] = "tanh"
    dropout: float = 0.0  # between the layers


@dataclass(frozen=True, kw_only=True)
class Mix:
    """scale · Σ softmax(weights)_l · h_l over the embedding and the output of each block (Peters et al. 2018, eq. 1).

    What `encode` gives where a model has it.
    """
