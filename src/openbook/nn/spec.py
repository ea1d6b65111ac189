"""What a model is, as a value.

A model is an embedding, a stack of blocks and heads; a block is a tuple of residual branches; a branch is a norm, a
layer and a place. Every spec is a frozen dataclass that holds values only: no callables, no conditionals. `build.py`
turns a spec into modules; the same value answers load, save, `describe` and arithmetic.

    Model(embed, stack, heads, source)
      Stack(dim, blocks, final_norm, relative)
        Block(branches, parallel, norm)
          Branch(layer, norm, place, scale)      place: pre | post | both | after | plain
            Attention · GlobalAttention · DisentangledAttention · LatentAttention · CrossAttention · MLP · MoE
            Selective · StateSpaceDual · Structured · GatedDelta · Convolution · Recurrent · Attentive
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openbook.nn.spec_local import Convolution as Convolution
from openbook.nn.spec_local import DisentangledAttention as DisentangledAttention
from openbook.nn.spec_local import GlobalAttention as GlobalAttention
from openbook.nn.spec_local import MarkBefore as MarkBefore
from openbook.nn.spec_local import MarkFirst as MarkFirst
from openbook.nn.spec_local import Pattern as Pattern
from openbook.nn.spec_positions import Alibi as Alibi
from openbook.nn.spec_positions import DynamicScaling as DynamicScaling
from openbook.nn.spec_positions import Learned as Learned
from openbook.nn.spec_positions import LengthDependent as LengthDependent
from openbook.nn.spec_positions import LinearScaling as LinearScaling
from openbook.nn.spec_positions import LongRopeScaling as LongRopeScaling
from openbook.nn.spec_positions import Norm as Norm
from openbook.nn.spec_positions import NtkScaling as NtkScaling
from openbook.nn.spec_positions import ProportionalScaling as ProportionalScaling
from openbook.nn.spec_positions import QueryKeyNorm as QueryKeyNorm
from openbook.nn.spec_positions import Relative as Relative
from openbook.nn.spec_positions import RelativeVectors as RelativeVectors
from openbook.nn.spec_positions import Rope as Rope
from openbook.nn.spec_positions import Scaling as Scaling
from openbook.nn.spec_positions import Sinusoidal as Sinusoidal
from openbook.nn.spec_positions import Temperature as Temperature
from openbook.nn.spec_positions import WavelengthScaling as WavelengthScaling
from openbook.nn.spec_positions import YarnScaling as YarnScaling
from openbook.nn.spec_recurrent import Attentive as Attentive
from openbook.nn.spec_recurrent import Cell as Cell
from openbook.nn.spec_recurrent import Mix as Mix
from openbook.nn.spec_recurrent import Recurrent as Recurrent
from openbook.nn.spec_states import GatedDelta as GatedDelta
from openbook.nn.spec_states import StateSpaceDual as StateSpaceDual
from openbook.nn.spec_states import Structured as Structured

Place = Literal["pre", "post", "both", "after", "plain"]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Multi-head, grouped-query or multi-query self-attention (Vaswani et al. 2017 §3.2; Ainslie et al. 2023)."""

    heads: int
    kv_heads: int
    head_dim: int
    pattern: Pattern = field(default_factory=Pattern)
    rope: Rope | None = None
    relative: bool = False  # add the stack's position bias
    bias: bool = False  # on q, k and v
    out_bias: bool = False
    clip: float | None = None  # q, k and v are kept within ± this
    norm: Norm | QueryKeyNorm | None = None  # of q and k; a plain norm: of each head, before the rotation
    temperature: Temperature | None = None
    scale: float | None = None  # of the scores; None: head_dim ** -0.5
    softcap: float | None = None  # scores become softcap · tanh(scores / softcap)
    dropout: float = 0.0  # of the attention weights
    sinks: bool = False  # a learned score for each head that takes weight and has no value (Xiao et al. 2023, §3.3)
    gate: bool = False  # what is mixed is multiplied by sigmoid(linear(x)), before `out` (Qiu et al. 2025)


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-AI 2024a, §2.1): a token is kept as kv_rank + rope.dim numbers.

    A head's query and key have `nope_dim` features that are not turned and `rope.dim` that are; the key's turned part
    is one for all heads, the rest and the value come from the latent of `kv_rank`.
    """

    heads: int
    kv_rank: int
    nope_dim: int
    value_dim: int
    rope: Rope  # of the turned part alone
    q_rank: int | None = None  # queries are made from a latent of this rank; None: from the input
    norm: Norm = field(default_factory=Norm)  # of the latents
    pattern: Pattern = field(default_factory=Pattern)
    bias: bool = False  # on the maps down to the latents
    out_bias: bool = False
    scale: float | None = None  # of the scores; None: (nope_dim + rope.dim) ** -0.5
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
    limit: float | None = None  # the gate is cut above it, `up` beyond it in size (gpt-oss)
    offset: float = 0.0  # added to `up` of a gated one


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router chooses experts and weighs them.

    With `groups`, only experts of the `top_groups` best groups can be chosen; a group is as good as its best expert
    ("max", DeepSeek-AI 2024a §2.2.2) or the sum of its best two ("sum2", DeepSeek-AI 2024b). `choice`: tokens choose
    experts, or, in training only, experts choose tokens (Zhou et al. 2022).
    """

    score: Literal["softmax", "sigmoid"] = "softmax"  # of the router's logits
    renormalise: bool = True  # divide the chosen weights by their sum
    scale: float = 1.0  # of the weights
    groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "sum2"] = "max"
    correction: bool = False  # a bias for each expert that chooses but does not weigh (Wang et al. 2024)
    bias: bool = False  # of the router's linear map
    input_scaled: bool = False  # the weight multiplies what an expert reads, not what it says
    choice: Literal["token", "expert"] = "token"


@dataclass(frozen=True, kw_only=True)
class MoE:
    """Mixture of experts: each token goes to its `top_k` of `experts` (Jiang et al. 2024, §2), and to the shared one.

    With `routing.choice` "expert", `top_k` is how many experts a token gets in the mean.
    """

    experts: int
    top_k: int
    expert: MLP
    routing: Routing = field(default_factory=Routing)
    shared: MLP | None = None  # every token's expert (Dai et al. 2024, §3.2)
    shared_gate: bool = False  # what it says is multiplied by sigmoid(linear(x))
    balance: float = 0.0  # weight of the load-balancing loss (Fedus et al. 2021, §2.2)
    z_loss: float = 0.0  # weight of the router's z-loss (Zoph et al. 2022, eq. 5)
    jitter: float = 0.0  # multiplicative noise on the router's input, in training
    capacity: float | None = None  # in training an expert takes this many times its fair share of tokens; None: all


@dataclass(frozen=True, kw_only=True)
class Selective:
    """The selective state space of Mamba 1 (Gu & Dao 2023, §3)."""

    inner: int
    state: int = 16
    kernel: int = 4
    rank: int  # of the map that makes each channel's step; published models have dim / 16
    activation: str = "silu"
    bias: bool = False
    conv_bias: bool = True
    norm: Norm | None = None  # of the step, of what is written and of what is read, each (Lieber et al. 2024, §6)


Mixer = Attention | LatentAttention | GlobalAttention | DisentangledAttention
StateMixer = Selective | StateSpaceDual | Structured | GatedDelta | Recurrent | Attentive
Layer = Mixer | CrossAttention | MLP | MoE | StateMixer | Convolution


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One residual step. pre: x + f(norm x) · post: norm(x + f x) · both: x + norm₂(f(norm₁ x)) · plain: f(norm x).

    after: x + norm(f x), what is added is normalised and the sum is not (Groeneveld et al. 2025, §3.2).
    """

    layer: Layer
    norm: Norm | None = None
    place: Place = "pre"
    scale: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Branches in order, or, if `parallel`, x + their sum, all plain (Wang & Komatsuzaki 2021).

    `aside` reads what the block reads, and its step is taken after all others.
    """

    branches: tuple[Branch, ...]
    parallel: bool = False
    norm: Norm | None = None  # the one norm that parallel branches share
    aside: Branch | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Blocks of one width, a norm at the end, and the position bias that all layers share.

    `order`: the number of the block that each step runs, for blocks that run more than once (Lan et al. 2019, §3.1).
    """

    dim: int
    blocks: tuple[Block, ...]
    order: tuple[int, ...] | None = None  # None: each block once
    final_norm: Norm | None = None
    relative: Relative | Alibi | RelativeVectors | None = None
    dropout: float = 0.0  # after the final norm
    out: int | None = None  # after all of that, a matrix to this width

    @property
    def width(self) -> int:
        """Of the last hidden states, which heads read."""
        return self.dim if self.out is None else self.out

    @property
    def steps(self) -> tuple[Block, ...]:
        """The blocks as they run, one after the other."""
        return self.blocks if self.order is None else tuple(self.blocks[number] for number in self.order)


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Token vectors, scaled, plus positions and segment types, then norm and dropout."""

    vocab: int
    dim: int
    positions: Learned | Sinusoidal | None = None
    types: int = 0
    norm: Norm | None = None
    scale: float = 1.0
    dropout: float = 0.0
    padding: int | None = None  # a row that stays zero
    copies: int = 1  # of the vector side by side, for a stack that reads both ways apart
    inner: int | None = None  # width of the token vectors, which a matrix brings to `dim` before positions are added

    @property
    def room(self) -> int | None:
        """How many tokens there are learned positions for; None: no limit."""
        return self.positions.count - self.positions.offset if isinstance(self.positions, Learned) else None


@dataclass(frozen=True, kw_only=True)
class Transform:
    """The small network before a head: dropout, linear, activation, norm (Devlin et al. 2018)."""

    activation: str | None
    norm: Norm | None = None
    dim: int | None = None  # what it makes of the stack's width; None: the same
    bias: bool = True
    dropout: float = 0.0


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
    """Logits over `count` labels: of the pooled row, of every token, of the first or last, or of the row's mean."""

    count: int
    over: Literal["pooled", "tokens", "first", "last", "mean"] = "pooled"
    transform: Transform | None = None
    bias: bool = True
    dropout: float = 0.0
    name: str = "classes"
    marks: MarkFirst | MarkBefore | None = None  # what its task marks


@dataclass(frozen=True, kw_only=True)
class MultiToken:
    """Predicts `depth` tokens beyond the next one, by the language head: see ahead.py (DeepSeek-AI 2024b, §2.2)."""

    block: Block
    norm: Norm  # of the embedding, of the hidden states before, and of what comes out
    depth: int = 1


Pooled = Literal["mean", "cls", "last", "max", "weighted", "root"]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """The vector of a row (Reimers & Gurevych 2019, §3): its tokens pooled, `dense` maps after it, length 1.

    by: their mean, the first, the last, the largest of each feature, the mean weighted by position (1, 2, …), or their
    sum over the root of their number; several stand one after the other.
    """

    by: tuple[Pooled, ...] = ("mean",)
    dense: tuple[Transform, ...] = ()
    normalise: bool = True
    longest: int | None = None  # tokens of a row it was made for


Head = Language | Pooler | Classes | Sentence | MultiToken | Mix


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The source side of an encoder-decoder. Without an embedding of its own it shares the decoder's.

    `shared`: its embedding has positions and norms of its own, and the decoder's token vectors.
    """

    stack: Stack
    embed: Embed | None = None
    shared: bool = False


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
    def ahead(self) -> MultiToken | None:
        """The head that speaks further ahead, if there is one."""
        return next((head for head in self.heads if isinstance(head, MultiToken)), None)

    @property
    def reads(self) -> Embed:
        """The embedding of a prompt: the encoder's own, where there is one."""
        return self.embed if self.source is None or self.source.embed is None else self.source.embed

    @property
    def reader(self) -> Stack:
        """The stack that a prompt is read by: the encoder's, where there is one."""
        return self.stack if self.source is None else self.source.stack

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one, so that the model can write from left to right."""
        layers = {branch.layer for block in dict.fromkeys(self.stack.blocks) for branch in block.branches}
        forward = all(layer.direction == "forward" for layer in layers if isinstance(layer, Recurrent))
        return forward and all(pattern.causal for pattern in self._patterns)

    @property
    def prefixed(self) -> bool:
        """Whether tokens marked as a prefix see each other both ways, so that a prompt must be read whole."""
        return any(pattern.marked == "prefix" for pattern in self._patterns)

    @property
    def marks(self) -> MarkFirst | MarkBefore | None:
        """What is marked where the caller marks nothing: what the task of its class head marks."""
        return next((head.marks for head in self.heads if isinstance(head, Classes) and head.marks), None)

    @property
    def _patterns(self) -> set[Pattern]:
        mixers = {branch.layer for block in dict.fromkeys(self.stack.blocks) for branch in block.branches}
        return {layer.pattern for layer in mixers if isinstance(layer, Mixer)}
