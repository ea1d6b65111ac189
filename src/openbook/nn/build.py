"""From a spec to modules: the one dispatch table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import TypeVar

from torch import nn

from openbook.errors import ConfigError, nearest
from openbook.nn import spec
from openbook.nn.activation import ACTIVATIONS
from openbook.nn.ahead import AheadHead
from openbook.nn.attention import SelfAttention, SourceAttention
from openbook.nn.attentive import AttentiveLayer
from openbook.nn.delta import DeltaRule
from openbook.nn.disentangled import Convolve, DisentangledSelfAttention
from openbook.nn.dual import DualSpace
from openbook.nn.embed import Embedding
from openbook.nn.globals import WindowAndGlobal
from openbook.nn.heads import ClassHead, LanguageHead, MixHead, PoolerHead, SentenceHead
from openbook.nn.latent import LatentAttention
from openbook.nn.limits import check_values
from openbook.nn.limits_recurrent import check_attentive, check_recurrent
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel, SourceModel
from openbook.nn.moe import Mixture
from openbook.nn.recurrent import RecurrentLayer
from openbook.nn.routing import check_routing
from openbook.nn.selective import StateSpace
from openbook.nn.stack import ResidualBlock, ResidualBranch, Tower
from openbook.nn.structured import StructuredSpace

T = TypeVar("T")
AHEAD = "ahead"  # the name of a MultiToken head
MOST_HEADS = 1024  # beyond it no divisors are looked for


def build(model: spec.Model) -> LanguageModel:
    """The module of a spec, parameters uninitialised. Build under `torch.device("meta")` for arithmetic alone."""
    check(model)
    embedding, source = Embedding(model.embed), None
    if model.source is not None:
        own, tokens = model.source.embed, embedding.tokens if model.source.shared else None
        embed = None if own is None else Embedding(own, tokens)
        source = SourceModel(embed, _stack(model.source.stack))
    builder = _Builder(model.stack, model.source.stack if model.source else None)
    blocks = builder.blocks(model.stack.blocks)
    heads = {head_name(head): _head(head, model, builder) for head in model.heads}
    stack = builder.tower(blocks)
    return LanguageModel(model, embedding, stack, heads, source)


def head_name(head: spec.Head) -> str:
    """The name a head goes by in `model.heads`."""
    match head:
        case spec.Language():
            return "language"
        case spec.Pooler():
            return "pooler"
        case spec.Classes(name=name):
            return name
        case spec.Mix():
            return "mix"
        case spec.MultiToken():
            return AHEAD
        case spec.Sentence():
            return "sentence"


def _stack(stack: spec.Stack) -> Tower:
    builder = _Builder(stack)
    return builder.tower(builder.blocks(stack.blocks))


def _head(head: spec.Head, model: spec.Model, builder: _Builder) -> nn.Module:
    dim = model.stack.width
    match head:
        case spec.Language():
            return LanguageHead(head, model.embed.vocab, dim)
        case spec.Pooler():
            return PoolerHead(dim)
        case spec.Classes():
            return ClassHead(head, dim)
        case spec.Mix():
            return MixHead(len(model.stack.blocks) + 1)
        case spec.MultiToken():
            return AheadHead(head, builder.blocks((head.block,) * head.depth), dim)
        case spec.Sentence():
            return SentenceHead(head, dim)


@dataclass
class _Builder:
    """Builds one stack, numbering its distinct patterns and ropes as they come."""

    stack: spec.Stack
    source: spec.Stack | None = None
    patterns: list[spec.Pattern] = field(default_factory=list)
    ropes: list[spec.Rope] = field(default_factory=list)

    def blocks(self, blocks: tuple[spec.Block, ...]) -> list[ResidualBlock]:
        """The modules of these blocks."""
        return [
            ResidualBlock(
                block,
                [self.branch(branch) for branch in block.branches],
                self.stack.dim,
                None if block.aside is None else self.branch(block.aside),
            )
            for block in blocks
        ]

    def tower(self, blocks: list[ResidualBlock]) -> Tower:
        """The stack of these blocks, with the patterns and ropes of all that were made."""
        return Tower(self.stack, blocks, tuple(self.patterns), tuple(self.ropes))

    def branch(self, branch: spec.Branch) -> ResidualBranch:
        return ResidualBranch(branch, self.layer(branch.layer), self.stack.dim)

    @singledispatchmethod
    def layer(self, layer: spec.Layer) -> nn.Module:
        raise AssertionError(layer)

    @layer.register
    def _(self, layer: spec.Attention) -> nn.Module:
        rope = None if layer.rope is None else _number(self.ropes, layer.rope)
        return SelfAttention(layer, self.stack.dim, _number(self.patterns, layer.pattern), rope)

    @layer.register
    def _(self, layer: spec.GlobalAttention) -> nn.Module:
        return WindowAndGlobal(layer, self.stack.dim, _number(self.patterns, layer.pattern))

    @layer.register
    def _(self, layer: spec.DisentangledAttention) -> nn.Module:
        return DisentangledSelfAttention(layer, self.stack.dim, _number(self.patterns, layer.pattern))

    @layer.register
    def _(self, layer: spec.Convolution) -> nn.Module:
        return Convolve(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.LatentAttention) -> nn.Module:
        mask, rope = _number(self.patterns, layer.pattern), _number(self.ropes, layer.rope)
        return LatentAttention(layer, self.stack.dim, mask, rope)

    @layer.register
    def _(self, layer: spec.CrossAttention) -> nn.Module:
        return SourceAttention(layer, self.stack.dim, self.source.dim if self.source else 0)

    @layer.register
    def _(self, layer: spec.MLP) -> nn.Module:
        return FeedForward(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.MoE) -> nn.Module:
        return Mixture(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.Selective) -> nn.Module:
        return StateSpace(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.Recurrent) -> nn.Module:
        return RecurrentLayer(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.Attentive) -> nn.Module:
        assert self.source is not None
        return AttentiveLayer(layer, self.stack.dim, self.source.dim, both_ways(self.source))

    @layer.register
    def _(self, layer: spec.StateSpaceDual) -> nn.Module:
        return DualSpace(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.Structured) -> nn.Module:
        return StructuredSpace(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.GatedDelta) -> nn.Module:
        return DeltaRule(layer, self.stack.dim)


def both_ways(stack: spec.Stack) -> bool:
    """Whether a stack's output is that of a network each way, side by side."""
    last = stack.blocks[-1].branches[-1].layer if stack.blocks and stack.blocks[-1].branches else None
    return isinstance(last, spec.Recurrent) and last.direction != "forward"


def _number(known: list[T], value: T) -> int:
    if value not in known:
        known.append(value)
    return known.index(value)


def check(model: spec.Model) -> None:
    """Raise a clear error for a spec that no module can be."""
    check_values(model)
    stacks = [model.stack] + ([model.source.stack] if model.source else [])
    for stack in stacks:
        for block in dict.fromkeys(stack.blocks):
            for branch in dict.fromkeys(block.branches + ((block.aside,) if block.aside else ())):
                _check_branch(branch, block, stack, model)
    if model.ahead is not None:
        for branch in model.ahead.block.branches:
            _check_branch(branch, model.ahead.block, model.stack, model)
        if model.language is None:
            raise ConfigError("A MultiToken head speaks by the language head: the model needs a Language.")
        if model.stack.width != model.stack.dim:
            raise ConfigError("A MultiToken head needs hidden states as wide as the stack: `out` must be None.")
    for head in model.heads:
        transforms = head.dense if isinstance(head, spec.Sentence) else ()
        if isinstance(head, spec.Language | spec.Classes) and head.transform is not None:
            transforms = (head.transform,)
        for transform in transforms:
            if transform.activation is not None:
                check_activation(transform.activation)
    named = [head_name(head) for head in model.heads]
    if len(set(named)) != len(named):
        raise ConfigError(f"Every head needs its own name: got {named}.")


def _check_branch(branch: spec.Branch, block: spec.Block, stack: spec.Stack, model: spec.Model) -> None:
    layer = branch.layer
    if branch.place in ("post", "both", "after") and branch.norm is None:
        raise ConfigError(f"A branch with place='{branch.place}' needs a norm.")
    if block.parallel and branch.place != "plain":
        raise ConfigError(f"The branches of a parallel block are plain: got place='{branch.place}'.")
    match layer:
        case spec.Attention():
            check_heads(layer.heads, layer.kv_heads)
            shared = stack.relative
            if layer.relative and (not isinstance(shared, spec.Relative | spec.Alibi) or shared.heads != layer.heads):
                raise ConfigError("Attention with relative=True needs a stack with `relative` of as many heads.")
            if layer.rope is not None and (layer.rope.dim % 2 or not 0 < layer.rope.dim <= layer.head_dim):
                raise ConfigError(
                    "The rotary `dim` must be even and at most `head_dim`: "
                    f"got dim={layer.rope.dim}, head_dim={layer.head_dim}."
                )
        case spec.GlobalAttention():
            pass
        case spec.DisentangledAttention():
            terms = layer.content_to_position or layer.position_to_content
            if terms and not isinstance(stack.relative, spec.RelativeVectors):
                raise ConfigError("Disentangled attention needs a stack whose `relative` is RelativeVectors.")
        case spec.Convolution():
            check_activation(layer.activation)
            if stack.dim % layer.groups:
                raise ConfigError(f"`groups` of a convolution must divide {stack.dim} features: got {layer.groups}.")
        case spec.LatentAttention():
            if layer.rope.dim % 2:
                raise ConfigError(f"The rotary `dim` must be even: got dim={layer.rope.dim}.")
        case spec.CrossAttention():
            check_heads(layer.heads, layer.kv_heads)
            if model.source is None:
                raise ConfigError("Cross attention needs a `source` to look at.")
        case spec.MLP():
            check_activation(layer.activation)
        case spec.MoE():
            check_experts(layer)
        case spec.Selective() | spec.StateSpaceDual() | spec.Structured() | spec.GatedDelta():
            check_activation(layer.activation)
        case spec.Recurrent():
            check_recurrent(layer, stack.dim)
        case spec.Attentive():
            if model.source is None:
                raise ConfigError("An Attentive layer needs a `source` to look at.")
            check_attentive(layer, stack.dim, model.source.stack.dim, both_ways(model.source.stack))


def check_heads(heads: int, kv_heads: int, where: str = "") -> None:
    """`kv_heads` must divide `heads`."""
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        fits = [str(n) for n in range(1, min(max(heads, 1), MOST_HEADS) + 1) if heads % n == 0]
        allowed = fits[0] if len(fits) == 1 else ", ".join(fits[:-1]) + " or " + fits[-1]
        place = f" ({where})" if where else ""
        raise ConfigError(
            f"`kv_heads` must divide `heads`: got heads={heads}, kv_heads={kv_heads}{place}. Use {allowed}."
        )


def check_experts(layer: spec.MoE) -> None:
    """What a mixture of experts can be."""
    for mlp in (layer.expert, layer.shared):
        if mlp is not None:
            check_activation(mlp.activation)
    if layer.shared_gate and layer.shared is None:
        raise ConfigError("`shared_gate` gates a `shared` expert: there is none.")
    check_routing(layer)


def check_activation(name: str) -> None:
    """The activation must be one we have."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation '{name}'.{nearest(name, ACTIVATIONS)}")
