"""What a model is, as a value.

A model is an embedding, a stack of blocks and heads; a block is a tuple of residual branches; a branch is a norm, a
layer and a place. Every spec is a frozen dataclass that holds values only: no callables, no conditionals. `build.py`
turns a spec into modules; the same value answers load, save, `describe` and arithmetic.

    Model(embed, stack, heads, source)
      Stack(dim, blocks, final_norm, relative)
        Block(branches, parallel, norm)
          Branch(layer, norm, place, scale)      place: pre | post | both | plain
            Attention · CrossAttention · MLP · MoE · Selective · Recurrent · Attentive
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openbook.nn.spec_positions import DynamicScaling as DynamicScaling
from openbook.nn.spec_positions import Learned as Learned
from openbook.nn.spec_positions import LinearScaling as LinearScaling
from openbook.nn.spec_positions import Norm as Norm
from openbook.nn.spec_positions import Relative as Relative
from openbook.nn.spec_positions import Rope as Rope
from openbook.nn.spec_positions import Scaling as Scaling
from openbook.nn.spec_positions import WavelengthScaling as WavelengthScaling
from openbook.nn.spec_positions import YarnScaling as YarnScaling
from openbook.nn.spec_recurrent import Attentive as Attentive
from openbook.nn.spec_recurrent import Cell as Cell
from openbook.nn.spec_recurrent import Mix as Mix
from openbook.nn.spec_recurrent import Recurrent as Recurrent

Place = Literal["pre", "post", "both", "plain"]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Which tokens see which. `window` w: a token sees itself and the w - 1 before it (and after it, if not causal)."""

    causal: bool = True
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Multi-head, grouped-query or multi-query self-attention (Vaswani et al. 2017 §3.2; Ainslie et al. 2023)."""

    heads: int
    kv_heads: int
    head_dim: int
    pattern: Pattern = field(default_factory=Pattern)
    rope: Rope | None = None
    relative: bool = False  # add the stack's relative bias
    bias: bool = False  # on q, k and v
    out_bias: bool = False
    norm: Norm | None = None  # of each head's q and k, before the rotation
    scale: float | None = None  # of the scores; None: head_dim ** -0.5
    softcap: float | None = None  # scores become softcap · tanh(scores / softcap)
    dropout: float = 0.0  # of the attention weights


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Attention over the encoder's output; its keys and values are computed once per sequence."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Feed-forward: `down(act(up(x)))`, or gated, `down(act(gate(x)) · up(x))` (Shazeer 2020)."""

    hidden: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    dropout: float = 0.0  # of the hidden features


@dataclass(frozen=True, kw_only=True)
class MoE:
    """Token-choice mixture of experts: each token goes to its `top_k` of `experts` (Jiang et al. 2024, §2)."""

    experts: int
    top_k: int
    expert: MLP
    renormalise: bool = True  # divide the chosen weights by their sum
    balance: float = 0.0  # weight of the load-balancing loss (Fedus et al. 2021, §2.2)
    jitter: float = 0.0  # multiplicative noise on the router's input, in training


@dataclass(frozen=True, kw_only=True)
class Selective:
    """The selective state space of Mamba 1 (Gu & Dao 2023, §3)."""

    inner: int
    state: int = 16
    kernel: int = 4
    rank: int = 0
    activation: str = "silu"
    bias: bool = False
    conv_bias: bool = True


Layer = Attention | CrossAttention | MLP | MoE | Selective | Recurrent | Attentive


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One residual step. pre: x + f(norm x) · post: norm(x + f x) · both: x + norm₂(f(norm₁ x)) · plain: f(norm x)."""

    layer: Layer
    norm: Norm | None = None
    place: Place = "pre"
    scale: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Branches in order, or, if `parallel`, x + their sum, all plain (Wang & Komatsuzaki 2021)."""

    branches: tuple[Branch, ...]
    parallel: bool = False
    norm: Norm | None = None  # the one norm that parallel branches share


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Blocks of one width, a norm at the end, and the relative positions that all layers share."""

    dim: int
    blocks: tuple[Block, ...]
    final_norm: Norm | None = None
    relative: Relative | None = None
    dropout: float = 0.0  # after the final norm


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Token vectors, plus learned positions and segment types, then scale, norm and dropout."""

    vocab: int
    dim: int
    positions: Learned | None = None
    types: int = 0
    norm: Norm | None = None
    scale: float = 1.0
    dropout: float = 0.0
    padding: int | None = None  # a row that stays zero
    copies: int = 1  # of the vector side by side, for a stack that reads both ways apart


@dataclass(frozen=True, kw_only=True)
class Transform:
    """The small network before a masked-language head: linear, activation, norm (Devlin et al. 2018)."""

    activation: str
    norm: Norm


@dataclass(frozen=True, kw_only=True)
class Language:
    """Logits over the vocabulary. Tied: the token embedding is the weight.

    directions 2: of a stack that reads both ways apart; the first half of a state says the next token, the second half
    the one before, with the same weights (Peters et al. 2018 §3.1); logits are [..,2,V].
    """

    tied: bool = True
    bias: bool = False
    transform: Transform | None = None
    scale: float = 1.0  # of the hidden state
    softcap: float | None = None
    directions: int = 1


@dataclass(frozen=True, kw_only=True)
class Pooler:
    """tanh(linear) of the first token: one vector per row."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Logits over `count` labels: of the pooled row, of every token, or of the last token."""

    count: int
    over: Literal["pooled", "tokens", "last"] = "pooled"
    bias: bool = True
    dropout: float = 0.0
    name: str = "classes"


Head = Language | Pooler | Classes | Mix


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The source side of an encoder-decoder. Without an embedding of its own it shares the decoder's."""

    stack: Stack
    embed: Embed | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A whole model. `context` is the longest row it was made for; None: no limit of its own."""

    embed: Embed
    stack: Stack
    heads: tuple[Head, ...]
    source: Encoder | None = None
    context: int | None = None

    @property
    def language(self) -> Language | None:
        """The head that speaks, if there is one."""
        return next((head for head in self.heads if isinstance(head, Language)), None)

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one, so that the model can write from left to right."""
        mixers = [branch.layer for block in self.stack.blocks for branch in block.branches]
        forward = all(layer.direction == "forward" for layer in mixers if isinstance(layer, Recurrent))
        return forward and all(layer.pattern.causal for layer in mixers if isinstance(layer, Attention))
