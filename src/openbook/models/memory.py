"""Bytes: what a sequence keeps between steps, what serving needs and what training needs, from a spec alone.

State and weights are exact. What training keeps for the backward pass is an estimate, made of what each layer saves for
a token (the terms are in `_saved`), in bf16 over fp32 parameters; a test holds it against what autograd really saves.
Symbols: see nn/shapes.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from openbook.models.cost import Inventory, Run, Side, count, parameters
from openbook.nn import spec
from openbook.nn.dual import CHUNK
from openbook.nn.scan import BORDER
from openbook.nn.state import PerSequence, PerSource, PerToken

BYTES = {"bf16": 2, "fp32": 4}
RECURRENT = 14  # numbers of each hidden feature that a recurrent cell saves: gates before and after, state, output


@dataclass(frozen=True, kw_only=True)
class StateSize:
    """What a sequence keeps between steps, in numbers (not bytes)."""

    tokens: tuple[tuple[int | None, int], ...] = ()  # (window, keys and values of one token) of each kind of layer
    sequence: int = 0  # in fp32, whatever its length
    source: int = 0  # for each token of the source

    @property
    def token(self) -> int:
        """Keys and values of one token, over all layers."""
        return sum(size for _, size in self.tokens)

    def bytes(self, context: int, width: int, source: int = 0) -> int:
        """Of one sequence of `context` tokens, in `width` bytes a number; windows bound what is kept."""
        kept = sum(size * (context if window is None else min(window, context)) for window, size in self.tokens)
        return (kept + self.source * source) * width + self.sequence * BYTES["fp32"]


def state(found: Inventory) -> StateSize:
    """What a sequence keeps; nothing for a model that does not write."""
    tokens: dict[int | None, int] = {}
    sequence = source = 0
    for kept, times in found.kept:
        match kept:
            case PerToken():
                tokens[kept.window] = tokens.get(kept.window, 0) + kept.numbers * times
            case PerSequence():
                sequence += sum(map(prod, kept.shapes)) * times
            case PerSource():
                source += kept.kv_heads * (kept.key_dim + kept.value_dim) * times
    ordered = sorted(tokens.items(), key=lambda pair: (pair[0] is not None, pair[0] or 0))
    return StateSize(tokens=tuple(ordered), sequence=sequence, source=source)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Bytes to serve: weights, and the state of all rows."""

    weights: int
    state: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.state


def serving(found: Inventory, context: int, rows: int, width: int) -> Serving:
    """Bytes to serve `rows` sequences of `context` tokens (and as many of source), in `width` bytes a number."""
    total = sum(parameters(found).values())
    source = context if found.source else 0
    return Serving(weights=total * width, state=state(found).bytes(context, width, source) * rows)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Bytes to train with AdamW: fp32 parameters, gradients and two moments; activations are estimated."""

    parameters: int
    gradients: int
    moments: int
    activations: int  # everything kept for the backward pass
    recomputed: int  # with gradient checkpointing: the inputs of all blocks, and the inside of the largest

    @property
    def total(self) -> int:
        """Everything, without gradient checkpointing."""
        return self.parameters + self.gradients + self.moments + self.activations

    @property
    def least(self) -> int:
        """Everything, with gradient checkpointing."""
        return self.parameters + self.gradients + self.moments + self.recomputed


def training(found: Inventory, context: int, rows: int) -> Training:
    """Bytes to train on micro-batches of `rows` rows of `context` tokens (and as many of source)."""
    total = sum(parameters(found).values()) * BYTES["fp32"]
    tokens = rows * context
    inside = inputs = largest = 0
    for side in (found.main, found.source):
        if side is None:
            continue
        for run in side.runs:
            block = _saved_by(run, side, context) * tokens + _cast(run)
            inside += block * run.steps
            inputs += side.stack.dim * BYTES["bf16"] * tokens * run.steps
            largest = max(largest, block)
        edges = (6 + 4) * side.stack.dim * tokens  # the embedding's output, the final norm, the hidden states
        inside, inputs = inside + edges, inputs + edges
    return Training(
        parameters=total, gradients=total, moments=2 * total, activations=inside, recomputed=inputs + largest
    )


def _cast(run: Run) -> int:
    """The weights of a block in the dtype of the computation."""
    return sum(map(count, run.branches)) * BYTES["bf16"]


def _saved_by(run: Run, side: Side, context: int) -> int:
    """Bytes that a block saves for each token."""
    dim, total = side.stack.dim, 0
    for branch in run.members:
        norms = 0 if branch.norm is None else 2 if branch.place == "both" else 1
        total += norms * 6 * dim + (4 * dim if branch.dropout else 0)  # a norm's input in fp32, its output in bf16
        total += _saved(branch.layer, dim, context)
    return total


def _saved(layer: spec.Layer, dim: int, context: int) -> int:
    """Bytes that a layer saves for each token of a row of `context` tokens."""
    match layer:
        case spec.Attention():
            size, kv = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
            total = 2 * (2 * size + 2 * kv) + 4 * layer.heads  # q, k, v, what is mixed, log-sum-exp
            total += 0 if layer.rope is None else 6 * size  # before the rotation, and keys repeated for their groups
            total += 0 if layer.norm is None else 6 * (size + kv)
            whole = layer.dropout > 0 or layer.softcap is not None or layer.relative
            return total + (12 * layer.heads * context if whole else 0)  # the scores themselves
        case spec.GlobalAttention():
            return 2 * 6 * layer.heads * layer.head_dim + 4 * layer.heads
        case spec.DisentangledAttention():
            return 8 * layer.heads * layer.head_dim + 24 * layer.heads * context
        case spec.Convolution():
            return 2 * (layer.kernel + 3) * dim
        case spec.LatentAttention():
            size, low = layer.heads * (layer.nope_dim + layer.rope.dim), layer.kv_rank + (layer.q_rank or 0)
            total = 2 * (2 * size + 2 * layer.heads * layer.value_dim) + 4 * layer.heads
            total += 6 * (low + layer.rope.dim) + 4 * layer.heads * (layer.nope_dim + 2 * layer.rope.dim)
            return total + (12 * layer.heads * context if layer.dropout else 0)
        case spec.CrossAttention():
            size, kv = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
            return 2 * (2 * size + 2 * kv) + 4 * layer.heads + (12 * layer.heads * context if layer.dropout else 0)
        case spec.MLP():
            return 2 * layer.hidden * (4 if layer.gated else 2) + (4 * layer.hidden if layer.dropout else 0)
        case spec.MoE():
            shared = 0 if layer.shared is None else _saved(layer.shared, dim, context)
            return layer.top_k * (_saved(layer.expert, dim, context) + 6 * dim) + 8 * layer.experts + shared
        case spec.Selective():
            return 4 * layer.inner * layer.state // BORDER + 16 * layer.state + 56 * layer.inner
        case spec.StateSpaceDual():
            inner = layer.heads * layer.head_dim
            return 16 * layer.heads * (CHUNK + 2 * layer.state) + 64 * inner + inner * layer.state // 4
        case spec.GatedDelta():
            size = layer.value_heads * (layer.key_dim + layer.value_dim)
            return 40 * layer.value_heads * CHUNK + 60 * size + layer.value_heads * layer.key_dim * layer.value_dim // 4
        case spec.Structured():
            return 32 * dim
        case spec.Recurrent():
            ways = 1 if layer.direction == "forward" else 2
            return ways * RECURRENT * 4 * layer.hidden
        case spec.Attentive():
            scores = (8 * (layer.align or layer.hidden) if layer.score == "additive" else 0) + 16
            return layer.layers * RECURRENT * 4 * layer.hidden + 20 * dim + context * scores
