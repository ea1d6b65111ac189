"""What the values of a spec may be, whoever wrote it: no size below one, no rate outside of its range, nothing endless.

A config.json is untrusted. Everything here fails before a module is built, with the field's name and what it may be.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from openbook.errors import ConfigError
from openbook.nn import spec
from openbook.nn.limits_states import check_state

SIZE = 2**31 - 1
MATRIX = 2**40  # numbers in one matrix
LAYERS = 20_000  # branches of one stack
EXPERTS = 1_000_000  # matrices of experts in one stack
FROM_ZERO = {"types", "padding", "offset", "token"}
POSITIVE = {"theta", "factor", "softcap", "beta_fast", "beta_slow", "attention", "low", "high", "base", "most", "clip"}
POSITIVE |= {"limit", "capacity"}  # of experts
RATES = {"dropout", "jitter", "position_dropout"}
NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_values(model: spec.Model) -> None:
    """Raise ConfigError for a value out of range anywhere in the spec."""
    stacks = [model.stack] + ([model.source.stack] if model.source else [])
    for stack in stacks:
        _check_order(stack)
        blocks = stack.steps
        if model.ahead is not None and stack is model.stack:
            if model.ahead.depth > LAYERS:
                raise ConfigError(f"At most {LAYERS:,} tokens ahead can be predicted: got {model.ahead.depth:,}.")
            blocks += (model.ahead.block,) * model.ahead.depth
        branches = sum(len(block.branches) for block in blocks)
        if branches > LAYERS:
            raise ConfigError(f"A stack has at most {LAYERS:,} layers: got {branches:,}.")
        layers = [branch.layer for block in blocks for branch in block.branches]
        layers += [block.aside.layer for block in blocks if block.aside]
        experts = sum(layer.experts for layer in layers if isinstance(layer, spec.MoE))
        if experts > EXPERTS:
            raise ConfigError(f"A stack has at most {EXPERTS:,} experts: got {experts:,}.")
        losses = {(layer.balance, layer.z_loss) for layer in layers if isinstance(layer, spec.MoE)}
        if len(losses) > 1:
            raise ConfigError(
                "All mixtures of a stack are balanced alike, by one loss: got (`balance`, `z_loss`) = "
                f"{', '.join(map(str, sorted(losses)))}. Give each block the same."
            )
        for layer in dict.fromkeys(layers):
            _check_layer(layer, stack.dim)
        _check_relative(stack)
    _walk(model, "model")
    largest = max(model.embed.vocab, model.stack.dim) * max(model.embed.dim, model.stack.dim, model.stack.width)
    if largest > MATRIX:
        raise ConfigError(f"The embedding would hold {largest:,} numbers; at most {MATRIX:,} can be.")
    if model.embed.padding is not None and model.embed.padding >= model.embed.vocab:
        raise ConfigError(f"`padding` must be below `vocab`: got {model.embed.padding} and {model.embed.vocab}.")
    embeds = [model.embed, model.source.embed if model.source else None]
    for positions in (embed.positions for embed in embeds if embed is not None):
        if isinstance(positions, spec.Learned) and positions.offset >= positions.count:
            raise ConfigError(
                f"`offset` of learned positions must be below `count`: got {positions.offset} and {positions.count}."
            )
    _check_widths(model)
    _check_heads(model)


def _walk(value: Any, where: str) -> None:
    """Check every field of a spec by its name and type; equal parts once."""
    for field in fields(value):
        item = getattr(value, field.name)
        place = f"{where}.{field.name}"
        if isinstance(item, spec.Norm) and not item.weight and (item.bias or item.offset):
            raise ConfigError(f"A norm without a weight has no bias and no offset ({place}).")
        if is_dataclass(item):
            _walk(item, place)
        elif isinstance(item, tuple):
            for part in dict.fromkeys(item):
                if is_dataclass(part):
                    _walk(part, place)
                elif isinstance(part, float) and not 0 < part < math.inf:
                    raise ConfigError(f"`{field.name}` must hold finite numbers above 0: got {part} ({place}).")
        elif isinstance(item, int) and not isinstance(item, bool):
            least = 0 if field.name in FROM_ZERO else 1
            if not least <= item <= SIZE:
                raise ConfigError(f"`{field.name}` must be {least} to {SIZE:,}: got {item} ({place}).")
        elif isinstance(item, float):
            _check_number(field.name, item, place)


def _check_number(name: str, value: float, place: str) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"`{name}` must be a finite number: got {value} ({place}).")
    if name in RATES and not 0 <= value < 1:
        raise ConfigError(f"`{name}` must be at least 0 and below 1: got {value:g} ({place}).")
    if name in POSITIVE and value <= 0:
        raise ConfigError(f"`{name}` must be above 0: got {value:g} ({place}).")
    if name in ("eps", "balance", "z_loss") and value < 0:
        raise ConfigError(f"`{name}` must not be below 0: got {value:g} ({place}).")


def _check_layer(layer: spec.Layer, dim: int) -> None:
    match layer:
        case spec.Attention() | spec.CrossAttention():
            size = max(layer.heads, layer.kv_heads) * layer.head_dim * dim
            if layer.scale is not None and layer.scale <= 0:
                raise ConfigError(f"The `scale` of scores must be above 0: got {layer.scale:g}.")
        case spec.GlobalAttention() | spec.DisentangledAttention():
            size = layer.heads * layer.head_dim * dim
            if isinstance(layer, spec.DisentangledAttention) and layer.factor <= 0:
                raise ConfigError(f"The `scale` of scores must be above 0: got {layer.scale:g}.")
        case spec.Convolution():
            size = dim * dim * layer.kernel // layer.groups
        case spec.LatentAttention():
            head = layer.nope_dim + max(layer.rope.dim, layer.value_dim)
            size = max(layer.heads * head, layer.kv_rank + layer.rope.dim) * max(dim, layer.kv_rank, layer.q_rank or 1)
            if layer.scale is not None and layer.scale <= 0:
                raise ConfigError(f"The `scale` of scores must be above 0: got {layer.scale:g}.")
        case spec.MLP():
            size = layer.hidden * dim
        case spec.MoE():
            size = max(layer.experts * layer.expert.hidden, layer.shared.hidden if layer.shared else 0) * dim
        case spec.Selective():
            size = layer.inner * max(2 * dim, layer.rank + 2 * layer.state, layer.kernel)
        case spec.Recurrent():
            size = 4 * layer.hidden * max(dim, layer.hidden)
        case spec.Attentive():
            size = max(4, layer.layers) * layer.hidden * max(2 * dim, 2 * layer.hidden)
        case spec.StateSpaceDual() | spec.Structured() | spec.GatedDelta():
            size = check_state(layer, dim)
    if size > MATRIX:
        raise ConfigError(f"A {type(layer).__name__} would hold a matrix of {size:,} numbers; {MATRIX:,} can be.")
    if isinstance(layer, spec.Attention | spec.LatentAttention):
        _check_pattern(layer.pattern)
    if isinstance(layer, spec.Attention | spec.LatentAttention) and layer.rope is not None:
        _check_scaling(layer.rope)


def _check_pattern(pattern: spec.Pattern) -> None:
    if pattern.marked == "global":
        raise ConfigError("A pattern with global tokens is that of GlobalAttention, which has q, k and v for them.")
    if pattern.marked == "prefix" and not pattern.causal:
        raise ConfigError("A prefix is read both ways in a causal pattern; in the others everything is.")


def _check_scaling(rope: spec.Rope) -> None:
    """What the formulas in rope.py divide by."""
    match rope.scaling:
        case spec.DynamicScaling() | spec.NtkScaling() if rope.dim <= 2:
            raise ConfigError(f"NTK rope scaling needs more than 2 rotary features: got {rope.dim}.")
        case spec.LongRopeScaling(short=short, long=long) if not len(short) == len(long) == rope.dim // 2:
            raise ConfigError(
                f"LongRoPE needs a short and a long factor for each of {rope.dim // 2} frequencies: got {len(short)} "
                f"and {len(long)}."
            )
        case spec.ProportionalScaling(share=share) if not 0 < share <= 1:
            raise ConfigError(f"The `share` of frequencies must be above 0 and at most 1: got {share:g}.")
        case spec.YarnScaling() if rope.theta <= 1:
            raise ConfigError(f"YaRN needs a `theta` above 1: got {rope.theta:g}.")
        case spec.WavelengthScaling(low=low, high=high) if low >= high:
            raise ConfigError(f"The rope's low frequency factor must be below the high one: got {low:g} and {high:g}.")
        case _:
            pass


def _check_order(stack: spec.Stack) -> None:
    """Every step runs a block there is, and every block is run."""
    if stack.order is not None and set(stack.order) != set(range(len(stack.blocks))):
        raise ConfigError(
            f"The `order` of a stack of {len(stack.blocks)} blocks names each of 0 to {len(stack.blocks) - 1} at least "
            f"once: got {sorted(set(stack.order))[:8]}."
        )
    if stack.order is not None and len(stack.order) > LAYERS:
        raise ConfigError(f"The `order` of a stack has at most {LAYERS:,} steps: got {len(stack.order):,}.")


def _check_relative(stack: spec.Stack) -> None:
    rule = stack.relative
    if rule is None:
        return
    if isinstance(rule, spec.RelativeVectors):
        if rule.span * 2 * stack.dim > MATRIX:
            raise ConfigError(f"`span` of relative vectors is too large: got {rule.span}.")
        if rule.distance is not None and (rule.span < 4 or rule.distance <= rule.span // 2 + 1):
            raise ConfigError(
                "Buckets of distance need a `span` of 4 or more and a `distance` beyond the exact ones: "
                f"got span={rule.span}, distance={rule.distance}."
            )
        return
    if isinstance(rule, spec.Alibi):
        if rule.scale <= 0:
            raise ConfigError(f"The `scale` of ALiBi must be above 0: got {rule.scale:g}.")
    else:
        exact = (rule.buckets // 2 if rule.bidirectional else rule.buckets) // 2
        if exact < 1 or rule.distance <= exact:
            raise ConfigError(
                f"Relative positions need at least {4 if rule.bidirectional else 2} `buckets` and a `distance` beyond "
                f"the exact ones: got buckets={rule.buckets}, distance={rule.distance}."
            )
    attention = [b.layer for block in stack.blocks for b in block.branches if isinstance(b.layer, spec.Attention)]
    if not any(layer.relative for layer in attention):
        raise ConfigError("A stack with `relative` needs attention with relative=True.")
    if any(layer.relative and layer.pattern != attention[0].pattern for layer in attention):
        raise ConfigError("Attention with relative=True must have the pattern of the stack's first attention.")


def _check_widths(model: spec.Model) -> None:
    """Vectors must have the width of what reads them; one embedding of another width is widened, a second is not."""
    if model.source is not None and model.source.shared:
        embed = model.source.embed
        if embed is None or (embed.vocab, embed.dim) != (model.embed.vocab, model.embed.dim):
            raise ConfigError("A source with shared=True needs an `embed` of the decoder's `vocab` and `dim`.")
    if model.source is not None:
        sides = {"the decoder": (model.embed, model.stack.dim)}
        sides["the encoder"] = (model.source.embed or model.embed, model.source.stack.dim)
        for side, (embed, dim) in sides.items():
            if (width := embed.dim * embed.copies) != dim:
                raise ConfigError(f"The embedding of {side} must have its `dim`: got {width} and {dim}.")
        layers = [branch.layer for block in model.source.stack.blocks for branch in block.branches]
        if any(isinstance(layer, spec.CrossAttention | spec.Attentive) for layer in layers):
            raise ConfigError("An encoder has no source of its own to look at: no cross attention there.")
        inner = [model.embed.inner, model.source.embed.inner if model.source.embed else None]
        if any(size is not None for size in (*inner, model.source.stack.out, model.stack.out)):
            raise ConfigError("`inner` of an embedding and `out` of a stack are not for encoder-decoders.")
    if model.embed.inner is not None and model.embed.dim != model.stack.dim:
        raise ConfigError(
            f"An embedding with `inner` must have the stack's `dim`: got {model.embed.dim} and {model.stack.dim}."
        )
    head, own = model.language, model.embed.inner or model.embed.dim
    if head is not None and (head.directions > 2 or model.stack.width % head.directions):
        raise ConfigError(f"`directions` of a head must be 1, or 2 halves of a state: got {head.directions}.")
    if head is not None and head.tied:
        width = (head.transform and head.transform.dim) or model.stack.width // head.directions
        if own != width:
            raise ConfigError(f"A tied head needs an embedding as wide as what it reads: got {own} and {width}.")


def _check_heads(model: spec.Model) -> None:
    pooled = any(isinstance(head, spec.Pooler) for head in model.heads)
    for head in model.heads:
        if not isinstance(head, spec.Classes):
            continue
        if not NAME.fullmatch(head.name) or hasattr(nn.ModuleDict, head.name):
            raise ConfigError(f"A head cannot be called {head.name!r}: use small letters, digits and _.")
        if head.over == "pooled" and not pooled:
            raise ConfigError(f"The head '{head.name}' reads the pooled row; the model needs a Pooler.")
