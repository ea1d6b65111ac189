"""From a spec to modules: the one dispatch table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import TypeVar

from torch import nn

from openbook.errors import ConfigError, nearest
from openbook.nn import spec
from openbook.nn.activation import ACTIVATIONS
from openbook.nn.attention import SelfAttention, SourceAttention
from openbook.nn.delta import DeltaRule
from openbook.nn.dual import DualSpace
from openbook.nn.embed import Embedding
from openbook.nn.heads import ClassHead, LanguageHead, PoolerHead
from openbook.nn.latent import LatentAttention
from openbook.nn.limits import check_values
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel, SourceModel
from openbook.nn.moe import Mixture
from openbook.nn.routing import check_routing
from openbook.nn.selective import StateSpace
from openbook.nn.stack import ResidualBlock, ResidualBranch, Tower
from openbook.nn.structured import StructuredSpace

T = TypeVar("T")


def build(model: spec.Model) -> LanguageModel:
    """The module of a spec, parameters uninitialised. Build under `torch.device("meta")` for arithmetic alone."""
    check(model)
    embedding, source = Embedding(model.embed), None
    if model.source is not None:
        own, tokens = model.source.embed, embedding.tokens if model.source.shared else None
        embed = None if own is None else Embedding(own, tokens)
        source = SourceModel(embed, _Builder(model.source.stack).tower())
    source_dim = model.source.stack.dim if model.source else 0
    stack = _Builder(model.stack, source_dim).tower()
    heads = {head_name(head): _head(head, model) for head in model.heads}
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


def _head(head: spec.Head, model: spec.Model) -> nn.Module:
    dim = model.stack.width
    match head:
        case spec.Language():
            return LanguageHead(head, model.embed.vocab, dim)
        case spec.Pooler():
            return PoolerHead(dim)
        case spec.Classes():
            return ClassHead(head, dim)


@dataclass
class _Builder:
    """Builds one stack, numbering its distinct patterns and ropes as they come."""

    stack: spec.Stack
    source_dim: int = 0
    patterns: list[spec.Pattern] = field(default_factory=list)
    ropes: list[spec.Rope] = field(default_factory=list)

    def tower(self) -> Tower:
        blocks = [
            ResidualBlock(
                block,
                [ResidualBranch(branch, self.layer(branch.layer), self.stack.dim) for branch in block.branches],
                self.stack.dim,
            )
            for block in self.stack.blocks
        ]
        return Tower(self.stack, blocks, tuple(self.patterns), tuple(self.ropes))

    @singledispatchmethod
    def layer(self, layer: spec.Layer) -> nn.Module:
        raise AssertionError(layer)

    @layer.register
    def _(self, layer: spec.Attention) -> nn.Module:
        rope = None if layer.rope is None else _number(self.ropes, layer.rope)
        return SelfAttention(layer, self.stack.dim, _number(self.patterns, layer.pattern), rope)

    @layer.register
    def _(self, layer: spec.LatentAttention) -> nn.Module:
        mask, rope = _number(self.patterns, layer.pattern), _number(self.ropes, layer.rope)
        return LatentAttention(layer, self.stack.dim, mask, rope)

    @layer.register
    def _(self, layer: spec.CrossAttention) -> nn.Module:
        return SourceAttention(layer, self.stack.dim, self.source_dim)

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
    def _(self, layer: spec.StateSpaceDual) -> nn.Module:
        return DualSpace(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.Structured) -> nn.Module:
        return StructuredSpace(layer, self.stack.dim)

    @layer.register
    def _(self, layer: spec.GatedDelta) -> nn.Module:
        return DeltaRule(layer, self.stack.dim)


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
            for branch in dict.fromkeys(block.branches):
                _check_branch(branch, block, stack, model)
    for head in model.heads:
        if not isinstance(head, spec.Pooler) and head.transform is not None:
            check_activation(head.transform.activation)
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
            if layer.relative and (stack.relative is None or stack.relative.heads != layer.heads):
                raise ConfigError("Attention with relative=True needs a stack with `relative` of as many heads.")
            if layer.rope is not None and (layer.rope.dim % 2 or not 0 < layer.rope.dim <= layer.head_dim):
                raise ConfigError(
                    "The rotary `dim` must be even and at most `head_dim`: "
                    f"got dim={layer.rope.dim}, head_dim={layer.head_dim}."
                )
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


def check_heads(heads: int, kv_heads: int, where: str = "") -> None:
    """`kv_heads` must divide `heads`."""
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        fits = [str(n) for n in range(1, max(heads, 1) + 1) if heads % n == 0]
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
