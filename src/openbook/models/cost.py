"""What a model holds and does, from its spec alone: parameters by part and operations per token, on the meta device.

Each distinct block is built once and counted as often as it occurs, so that any depth is instant. Parameters are exact.
Operations count a multiply-add as two and leave out norms, activations and softmax. What it needs of memory is in
memory.py. Symbols: see nn/shapes.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn

from openbook.models.sight import tokens_seen
from openbook.nn import spec
from openbook.nn.build import AHEAD, build
from openbook.nn.stack import ResidualBlock, Tower
from openbook.nn.state import PerSequence, PerSource, PerToken, Stateful

Shapes = Mapping[str, tuple[int, ...]]
SCAN = 6  # operations for each element of a selective state: discretise twice, decay, add, read
PARTS = (
    "embedding",
    "positions",
    "attention",
    "cross attention",
    "feed-forward",
    "experts",
    "routers",
    "state space",
    "recurrent",
    "convolutions",
    "norms",
    "heads",
    "further tokens",
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A table, branch, norm or head, with the shapes of its parameters.

    `times`: how often the model has it; `runs`: how often a token passes through them, where that is another number.
    """

    part: str
    shapes: Shapes
    times: int = 1
    runs: int | None = None
    layer: spec.Layer | None = None
    source: bool = False  # of the encoder of an encoder-decoder
    products: int = 0  # weights that multiply each token once, beside those of `layer`


@dataclass(frozen=True, kw_only=True)
class Run:
    """Blocks that are alike (but for the scale of their scores): their numbers, the spec of one, its shapes.

    `steps`: how many steps of the stack they are, which is more than their number where blocks run again.
    """

    numbers: tuple[int, ...]
    steps: int
    block: spec.Block
    branches: tuple[Shapes, ...]
    norms: Shapes

    @property
    def members(self) -> tuple[spec.Branch, ...]:
        """Its branches, and the one aside."""
        return self.block.branches + (() if self.block.aside is None else (self.block.aside,))

    @property
    def parameters(self) -> int:
        """Of one of these blocks."""
        return sum(map(count, self.branches)) + count(self.norms)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One stack with what stands before and after its blocks."""

    stack: spec.Stack
    runs: tuple[Run, ...]
    embed: Shapes
    final: Shapes
    out: Shapes
    relative: Shapes


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything a model holds."""

    model: spec.Model
    main: Side
    source: Side | None
    heads: Mapping[str, Shapes]
    kept: tuple[tuple[PerToken | PerSequence | PerSource, int], ...]  # declarations of state, and how many of each
    items: tuple[Item, ...]


def count(shapes: Shapes) -> int:
    """Numbers in these tensors."""
    return sum(prod(shape) for shape in shapes.values())


# ------------------------------------------------------------------------------------------------ what there is


def inventory(model: spec.Model) -> Inventory:
    """List what the model of this spec holds. Raises ConfigError for a spec that no module can be."""
    groups = _alike(model.stack)
    slim = replace(model, stack=replace(model.stack, blocks=tuple(groups), order=None))
    source_groups = {} if model.source is None else _alike(model.source.stack)
    if model.source is not None:
        slim = replace(
            slim,
            source=replace(model.source, stack=replace(model.source.stack, blocks=tuple(source_groups), order=None)),
        )
    with torch.device("meta"):
        built = build(slim)
    embed = _shapes(built.embed)
    if built.widen is not None:
        embed |= {f"widen.{name}": shape for name, shape in _shapes(built.widen).items()}
    main = _side(built.stack, model.stack, groups, embed)
    source = None
    if model.source is not None and built.source is not None:
        own = {} if built.source.embed is None else _shapes(built.source.embed)
        if model.source.shared:
            del own["tokens.weight"]
        source = _side(built.source.stack, model.source.stack, source_groups, own)
    heads = {name: _shapes(head) for name, head in built.heads.items()}
    return Inventory(
        model=model,
        main=main,
        source=source,
        heads=heads,
        kept=_kept(built.stack, model.stack, groups) if model.causal else (),
        items=tuple(_items(main, source, heads, model)),
    )


def _alike(stack: spec.Stack) -> dict[spec.Block, list[int]]:
    """The distinct blocks of a stack, and where each occurs."""
    groups: dict[spec.Block, list[int]] = {}
    for number, block in enumerate(stack.blocks):
        groups.setdefault(_face(block), []).append(number)
    return groups


def _face(block: spec.Block) -> spec.Block:
    """The block without what makes no difference to its cost."""
    branches = tuple(
        replace(branch, layer=replace(branch.layer, scale=None))
        if isinstance(branch.layer, spec.Attention | spec.LatentAttention | spec.CrossAttention)
        else branch
        for branch in block.branches
    )
    return replace(block, branches=branches)


def _shapes(module: nn.Module | None) -> dict[str, tuple[int, ...]]:
    return {} if module is None else {name: tuple(p.shape) for name, p in module.named_parameters()}


def _side(tower: Tower, stack: spec.Stack, groups: Mapping[spec.Block, list[int]], embed: Shapes) -> Side:
    runs = []
    for (face, numbers), block in zip(groups.items(), tower.blocks, strict=True):
        assert isinstance(block, ResidualBlock)
        norms = {name: shape for name, shape in _shapes(block).items() if ".layer." not in name}
        members = [*block.branches, *([] if block.aside is None else [block.aside])]
        branches = tuple(_shapes(branch.get_submodule("layer")) for branch in members)
        runs.append(
            Run(numbers=tuple(numbers), steps=_steps(stack, numbers), block=face, branches=branches, norms=norms)
        )
    return Side(
        stack=stack,
        runs=tuple(runs),
        embed=embed,
        final=_shapes(tower.final_norm),
        out=_shapes(tower.out),
        relative=_shapes(tower.relative),
    )


def _steps(stack: spec.Stack, numbers: list[int]) -> int:
    return len(numbers) if stack.order is None else sum(number in numbers for number in stack.order)


def _kept(
    tower: Tower, stack: spec.Stack, groups: Mapping[spec.Block, list[int]]
) -> tuple[tuple[PerToken | PerSequence | PerSource, int], ...]:
    return tuple(
        (module.declare(), _steps(stack, numbers))
        for numbers, block in zip(groups.values(), tower.blocks, strict=True)
        for module in block.modules()
        if isinstance(module, Stateful)
    )


LAYER_PARTS: Mapping[type[spec.Layer], str] = {
    spec.Attention: "attention",
    spec.GlobalAttention: "attention",
    spec.DisentangledAttention: "attention",
    spec.LatentAttention: "attention",
    spec.CrossAttention: "cross attention",
    spec.Convolution: "convolutions",
    spec.MLP: "feed-forward",
    spec.MoE: "experts",
    spec.Selective: "state space",
    spec.Recurrent: "recurrent",
    spec.Attentive: "recurrent",
    spec.StateSpaceDual: "state space",
    spec.Structured: "state space",
    spec.GatedDelta: "state space",
}


def _items(main: Side, source: Side | None, heads: Mapping[str, Shapes], model: spec.Model) -> Iterable[Item]:
    for side in (main, source):
        if side is None:
            continue
        from_source = side is source
        places = {name: shape for name, shape in side.embed.items() if name.startswith("positions")}
        norms = {name: shape for name, shape in side.embed.items() if "norm" in name}
        tables = {name: shape for name, shape in side.embed.items() if name not in places and name not in norms}
        widen = sum(prod(shape) for name, shape in tables.items() if name == "widen.weight")
        yield Item(part="embedding", shapes=tables, source=from_source, products=widen)
        yield Item(part="positions", shapes={**places, **side.relative}, source=from_source)
        yield Item(part="norms", shapes={**norms, **{f"final.{n}": s for n, s in side.final.items()}})
        for run in side.runs:
            yield Item(part="norms", shapes=run.norms, times=len(run.numbers))
            for branch, shapes in zip(run.members, run.branches, strict=True):
                yield from _layer_items(branch.layer, shapes, run, from_source)
        yield Item(part="heads", shapes=side.out, source=from_source, products=count(side.out))
    for name, shapes in heads.items():
        if name == AHEAD:
            yield Item(part="further tokens", shapes=shapes)
            continue
        yield Item(part="heads", shapes=shapes, products=_head_products(name, shapes, model))


def _layer_items(layer: spec.Layer, shapes: Shapes, run: Run, source: bool) -> Iterable[Item]:
    times = len(run.numbers)
    inside = {name: shape for name, shape in shapes.items() if "norm" in name}
    router = {name: shape for name, shape in shapes.items() if name.startswith(("router", "correction", "shared_gate"))}
    shared = {name: shape for name, shape in shapes.items() if name.startswith("shared.")}
    own = {name: shape for name, shape in shapes.items() if name not in inside | router | shared}
    yield Item(part=LAYER_PARTS[type(layer)], shapes=own, times=times, runs=run.steps, layer=layer, source=source)
    if isinstance(layer, spec.MoE) and layer.shared is not None:
        yield Item(part="experts", shapes=shared, times=times, runs=run.steps, layer=layer.shared, source=source)
    yield Item(part="norms", shapes=inside, times=times)
    yield Item(part="routers", shapes=router, times=times, runs=run.steps, source=source, products=count(router))


def _head_products(name: str, shapes: Shapes, model: spec.Model) -> int:
    """Weights of a head that multiply every token; what reads one vector of a row is not counted."""
    for head in model.heads:
        if isinstance(head, spec.Language) and name == "language":
            width = (head.transform and head.transform.dim) or model.stack.width
            return model.embed.vocab * width + sum(prod(s) for n, s in shapes.items() if ".linear.w" in n)
        if isinstance(head, spec.Classes) and name == head.name and head.over == "tokens":
            return sum(prod(shape) for shape in shapes.values() if len(shape) == 2)
    return 0


def parameters(found: Inventory) -> dict[str, int]:
    """Parameters by part; a tied head counts once, with the embedding."""
    sums = dict.fromkeys(PARTS, 0)
    for item in found.items:
        sums[item.part] += count(item.shapes) * item.times
    return {part: total for part, total in sums.items() if total}


def active(found: Inventory) -> int:
    """Parameters that one token meets: all, but of the experts only those it is sent to.

    What predicts tokens beyond the next one is not met: it may be left away.
    """
    idle = sum(
        count(item.shapes) * item.times * (item.layer.experts - item.layer.top_k) // item.layer.experts
        for item in found.items
        if isinstance(item.layer, spec.MoE)
    )
    parts = parameters(found)
    return sum(parts.values()) - parts.get("further tokens", 0) - idle


# ------------------------------------------------------------------------------------------------ operations


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of a forward pass for one token; attention in a row of `context` tokens."""

    context: int
    products: int  # matrices, convolutions and scans: the same for every token
    attention_last: int  # scores and mixing for the row's last token
    attention_mean: float  # the same, averaged over the row

    @property
    def last(self) -> int:
        """A forward pass of the last token: what decoding one more costs."""
        return self.products + self.attention_last

    @property
    def mean(self) -> float:
        """A forward pass of a row's average token: what prefill costs."""
        return self.products + self.attention_mean

    @property
    def training(self) -> float:
        """Forward and backward of an average token: three forward passes."""
        return 3 * self.mean


def work(found: Inventory, context: int, source: bool = False) -> Work:
    """Operations for one token of the stack; with `source`, for one token of the encoder's side."""
    products, last, mean = 0, 0, 0.0
    for item in found.items:
        mine = item.source == source
        weights, widths = item.products if mine else 0, 0
        first = final = 0.0
        match item.layer:
            case spec.Attention() as layer if mine:
                weights += _matrices(item.shapes)
                widths = layer.heads * layer.head_dim
                first, final = tokens_seen(layer.pattern, context)
            case spec.GlobalAttention() as layer if mine:
                weights += _matrices({n: s for n, s in item.shapes.items() if n != "global_q.weight"})
                widths = layer.heads * layer.head_dim
                first, final = tokens_seen(layer.pattern, context)
            case spec.DisentangledAttention() as layer if mine:
                weights += _matrices({n: s for n, s in item.shapes.items() if not n.startswith("position_")})
                widths, first, final = layer.heads * layer.head_dim, context, context
                weights += _distances(layer, found.source if source and found.source else found.main, context)
            case spec.LatentAttention() as layer if mine:  # expanded over whole rows; absorbed when one is decoded
                weights += _matrices(item.shapes)
                rank, turned, seen = layer.kv_rank, layer.rope.dim, tokens_seen(layer.pattern, context)
                widths, first = 1, layer.heads * (layer.nope_dim + turned + layer.value_dim) / 2 * seen[0]
                final = layer.heads * (2 * rank + turned) / 2 * seen[1]
            case spec.CrossAttention() as layer:
                per_source = {n: s for n, s in item.shapes.items() if n.startswith(("k.", "v."))}
                if source:
                    weights += _matrices(per_source)
                else:
                    weights += _matrices(item.shapes) - _matrices(per_source)
                    widths, first, final = layer.heads * layer.head_dim, context, context
            case spec.Attentive():
                key, once = (item.shapes.get(f"{name}.weight", (0,)) for name in ("memory.key", "bridge"))
                weights += prod(key) if source else _matrices(item.shapes) - prod(key) - prod(once)
                if not source:  # scores of half the keys' width and as much of the values', each done twice
                    widths, first, final = _memory(found) // 2, context, context
            case spec.MLP() | spec.Recurrent() | spec.Convolution() if mine:
                weights += _matrices(item.shapes)
            case spec.MoE() as layer if mine:
                weights += count(item.shapes) * layer.top_k // layer.experts
            case spec.Selective() as layer if mine:
                weights += _matrices(item.shapes) + layer.inner * (1 + layer.state * (SCAN // 2 - 1))
            case spec.StateSpaceDual() as layer if mine:
                weights += _matrices(item.shapes) + layer.heads * layer.head_dim * (1 + 2 * layer.state)
            case spec.GatedDelta() as layer if mine:
                weights += _matrices(item.shapes) + 3 * layer.value_heads * layer.key_dim * layer.value_dim
            case spec.Structured() as layer if mine:
                weights += prod(item.shapes["out.weight"]) + item.shapes["skip"][0] * (1 + 4 * layer.state)
        runs = item.times if item.runs is None else item.runs
        products += 2 * weights * runs
        last += int(4 * widths * final) * runs
        mean += 4 * widths * first * runs
    return Work(context=context, products=products, attention_last=last, attention_mean=mean)


def _memory(found: Inventory) -> int:
    """Width of the keys and values that a recurrent decoder looks at, together."""
    return next(kept.key_dim + kept.value_dim for kept, _ in found.kept if isinstance(kept, PerSource))


def _distances(layer: spec.DisentangledAttention, side: Side, context: int) -> int:
    """Products with the vectors of relative positions: made for a row, then met by each token."""
    if not isinstance(side.stack.relative, spec.RelativeVectors):
        return 0
    vectors, width = 2 * side.stack.relative.span, layer.heads * layer.head_dim
    terms = layer.content_to_position + layer.position_to_content
    return terms * (vectors * width + vectors * width * side.stack.dim // context)


def _matrices(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values() if len(shape) >= 2)
