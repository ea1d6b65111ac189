"""Law 1, shards: a layer with some of its heads, hidden features or experts computes its part; the parts add up.

A tensor-parallel shard is just a smaller layer: its weights are slices, its counts are read from them. What must be
added once (the bias of the output) stands in the first shard.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from openbook.models.load import load
from openbook.nn import spec
from openbook.nn.attention import SelfAttention, SourceAttention
from openbook.nn.build import build
from openbook.nn.disentangled import DisentangledSelfAttention
from openbook.nn.embed import LinearBias, RelativeBias
from openbook.nn.globals import WindowAndGlobal
from openbook.nn.latent import LatentAttention
from openbook.nn.marks import mark
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.moe import Experts, Mixture
from openbook.nn.stack import Tower
from openbook.nn.state import Context, Dense, Source, count_positions
from tests.families import ALL, Case, each

BOUND = 1e-5
Special = DisentangledSelfAttention | WindowAndGlobal
SHARDED = (
    SelfAttention,
    LatentAttention,
    SourceAttention,
    FeedForward,
    Mixture,
    *get_args(Special),
)  # a shard is a smaller one
Span = tuple[int, int]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def close(ours: Tensor, theirs: Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).abs().max() <= BOUND * max(1.0, float(theirs.abs().max())))


# ------------------------------------------------------------------------------------------------ cutting


def cut(linear: nn.Module, start: int, end: int, dim: int, keep_bias: bool = True) -> None:
    """Keep rows (dim 0) or columns (dim 1) of a linear map; the bias of cut columns is kept by one shard alone."""
    linear.weight = nn.Parameter(linear.weight.detach().narrow(dim, start, end - start))
    if linear.bias is not None:
        bias = linear.bias.detach()
        linear.bias = nn.Parameter(bias[start:end] if dim == 0 else bias if keep_bias else torch.zeros_like(bias))


def cut_attention(layer: SelfAttention | SourceAttention, heads: Span) -> None:
    """Keep these query heads and the key/value heads that they look at."""
    size = layer.spec.head_dim
    group = layer.spec.heads // layer.spec.kv_heads
    keys = (heads[0] // group, -(-heads[1] // group))
    cut(layer.q, heads[0] * size, heads[1] * size, 0)
    cut(layer.k, keys[0] * size, keys[1] * size, 0)
    cut(layer.v, keys[0] * size, keys[1] * size, 0)
    cut(layer.out, heads[0] * size, heads[1] * size, 1, heads[0] == 0)
    if isinstance(layer, SelfAttention) and layer.gate is not None:
        cut(layer.gate, heads[0] * size, heads[1] * size, 0)
    if isinstance(layer, SelfAttention) and layer.sinks is not None:
        layer.sinks = nn.Parameter(layer.sinks.detach()[heads[0] : heads[1]])
    if isinstance(layer, SelfAttention) and layer.norm is not None and layer.norm.over == "heads":
        for norm, span in ((layer.q_norm, heads), (layer.k_norm, keys)):
            assert norm is not None
            assert norm.weight is not None
            norm.weight = nn.Parameter(norm.weight.detach()[span[0] : span[1]])


def cut_special(layer: Special, heads: Span) -> None:
    """Keep these heads of every map."""
    size = layer.spec.head_dim
    for name, part in layer.named_children():
        cut(part, heads[0] * size, heads[1] * size, int(name == "out"), name != "out" or heads[0] == 0)


def cut_latent(layer: LatentAttention, heads: Span) -> None:
    """Keep these heads; the maps down to the latents stay whole, as every head reads them."""
    one = layer.spec
    queries, maps = one.nope_dim + one.rope.dim, one.nope_dim + one.value_dim
    linear = layer.q if layer.q_up is None else layer.q_up
    assert linear is not None
    cut(linear, heads[0] * queries, heads[1] * queries, 0)
    cut(layer.kv_up, heads[0] * maps, heads[1] * maps, 0)
    cut(layer.out, heads[0] * one.value_dim, heads[1] * one.value_dim, 1, heads[0] == 0)


def cut_feed_forward(layer: FeedForward, span: Span) -> None:
    for part in (layer.gate, layer.up):
        if part is not None:
            cut(part, *span, 0)
    cut(layer.down, *span, 1, span[0] == 0)


def cut_hidden(experts: Experts, span: Span) -> None:
    """Every expert, some of its hidden features."""
    for name, parameter in list(experts.named_parameters()):
        held = parameter.detach()
        if name == "down_bias":  # kept by one shard alone
            setattr(experts, name, nn.Parameter(held if span[0] == 0 else torch.zeros_like(held)))
        else:
            setattr(experts, name, nn.Parameter(held.narrow(2 if name == "down" else 1, span[0], span[1] - span[0])))


def cut_experts(experts: Experts, span: Span) -> None:
    """Some experts, whole. The router stays: every shard sends every token its way."""
    for name, parameter in list(experts.named_parameters()):
        setattr(experts, name, nn.Parameter(parameter.detach()[span[0] : span[1]]))
    experts.first = span[0]


def spans(count: int, parts: int, step: int = 1) -> list[Span]:
    """`parts` pieces of `count`, in whole steps, unequal where it does not divide."""
    units = count // step
    edges = [units * part // parts * step for part in range(parts + 1)]
    return [span for span in pairwise(edges) if span[0] < span[1]]


# ------------------------------------------------------------------------------------------------ running


def context(tower: Tower, source: Tensor | None, bias: nn.Module | None, segmented: bool) -> Context:
    count = 9
    segments = torch.tensor([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2]) if segmented else None
    positions = count_positions(torch.ones(2, count, dtype=torch.int64) if segments is None else segments)
    marks = mark(torch.arange(count).expand(2, count) % 4 == 1, segments)
    state = Dense(positions, segments, tower.patterns, count, marks=marks)
    rotary = tuple(table.rows(positions, 64, 64, torch.float32) for table in tower.tables)
    ctx = Context(state, rotary, None if source is None else Source(source, None), marks=marks)
    if isinstance(bias, RelativeBias | LinearBias):
        state.bias(bias, 0)
        return ctx
    return tower.prepare(ctx, torch.float32)


def shards(layer: nn.Module, parts: int) -> list[tuple[nn.Module, Span]]:
    """A layer's shards, each with the query heads it has (an empty span where there are none)."""
    found: list[tuple[nn.Module, Span]] = []
    match layer:
        case SelfAttention(norm=spec.QueryKeyNorm(over="width")):
            found.append(
                (deepcopy(layer), (0, 0))
            )  # needs the sums of all heads: whole on every rank, as the reference
        case SelfAttention() | SourceAttention():
            group = layer.spec.heads // layer.spec.kv_heads
            for span in spans(layer.spec.heads, parts, group if layer.spec.kv_heads > 1 else 1):
                shard = deepcopy(layer)
                cut_attention(shard, span)
                found.append((shard, span))
        case DisentangledSelfAttention() | WindowAndGlobal():
            for span in spans(layer.spec.heads, parts):
                shard = deepcopy(layer)
                cut_special(shard, span)
                found.append((shard, span))
        case LatentAttention():
            for span in spans(layer.spec.heads, parts):
                shard = deepcopy(layer)
                cut_latent(shard, span)
                found.append((shard, span))
        case FeedForward():
            for span in spans(layer.spec.hidden, parts):
                shard = deepcopy(layer)
                cut_feed_forward(shard, span)
                found.append((shard, (0, 0)))
        case Mixture():
            for way, total in ((cut_experts, layer.spec.experts), (cut_hidden, layer.spec.expert.hidden)):
                for number, span in enumerate(spans(total, parts)):
                    shard = deepcopy(layer)
                    way(shard.experts, span)
                    if shard.shared is not None:
                        cut_feed_forward(shard.shared, spans(shard.shared.spec.hidden, parts)[number])
                    found.append((shard, (0, 0)))
    return found


def run(tower: Tower, layer: nn.Module, heads: Span, x: Tensor, source: Tensor | None, segmented: bool) -> Tensor:
    """One layer on its own, with the position bias of its heads."""
    bias = tower.relative
    if isinstance(bias, RelativeBias | LinearBias) and heads[1]:
        bias = deepcopy(bias)
        if isinstance(bias, LinearBias):
            bias.span = heads
        else:
            bias.weight = nn.Parameter(bias.weight.detach()[:, heads[0] : heads[1]])
    out: Tensor = layer(x, context(tower, source, bias, segmented))
    return out


def towers(model: LanguageModel) -> list[Tower]:
    return [model.stack] + ([model.source.stack] if model.source is not None else [])


def layers(tower: Tower) -> list[nn.Module]:
    """One of each kind of layer."""
    kinds: dict[spec.Layer, nn.Module] = {}
    for block in tower.blocks:
        for branch in block.branches:
            kinds.setdefault(branch.spec.layer, branch.layer)
    return list(kinds.values())


@torch.no_grad()
@pytest.mark.parametrize("segmented", [False, True], ids=["plain", "segments"])
@pytest.mark.parametrize("parts", [2, 3])
@each(ALL)
def test_shards_add_up(case: Case, parts: int, segmented: bool, root: Path) -> None:
    model = load(case.folder(root)).eval()
    for tower in towers(model):
        dim = tower.spec.dim
        x, source = torch.randn(2, 9, dim), torch.randn(2, 7, dim) if model.source is not None else None
        for layer in (one for one in layers(tower) if isinstance(one, SHARDED)):
            whole = run(tower, layer, (0, 0), x, source, segmented)
            pieces = [run(tower, shard, heads, x, source, segmented) for shard, heads in shards(layer, parts)]
            copies = 2 if isinstance(layer, Mixture) else 1  # cut both ways
            assert len(pieces) > copies or isinstance(layer, SelfAttention)
            assert close(torch.stack(pieces).sum(0), whole * copies)


def test_shards_declare_what_they_keep() -> None:
    layer = spec.Attention(heads=6, kv_heads=2, head_dim=4)
    block = spec.Block(branches=(spec.Branch(layer=layer),))
    model = build(spec.Model(embed=spec.Embed(vocab=5, dim=8), stack=spec.Stack(dim=8, blocks=(block,)), heads=()))
    attention = model.stack.blocks[0].branches[0].layer  # type: ignore[union-attr,index]
    assert attention.declare().kv_heads == 2
    cut_attention(attention, (0, 3))
    assert attention.declare().kv_heads == 1


def mixture(seed: int = 0) -> Mixture:
    layer = Mixture(spec.MoE(experts=5, top_k=3, expert=spec.MLP(hidden=13)), 7)
    torch.manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("way", [cut_experts, cut_hidden])
def test_gradients_of_expert_shards_add_up(way: object) -> None:
    """Each shard's x gradient is its part; each expert's gradient is that of the whole layer."""
    layer, x = mixture(), torch.randn(11, 7)
    ctx = Context(Dense(torch.zeros(1, 11), None, (), 11), ())
    whole = x.clone().requires_grad_()
    layer(whole.unsqueeze(0), ctx).square().sum().backward()
    upstream = 2 * layer(x.unsqueeze(0), ctx).detach()  # of the sum of all shards
    total = torch.zeros_like(x)
    for span in spans(5 if way is cut_experts else 13, 2):
        shard = deepcopy(layer)
        way(shard.experts, span)  # type: ignore[operator]
        own = x.clone().requires_grad_()
        shard(own.unsqueeze(0), ctx).backward(upstream)
        assert own.grad is not None
        total += own.grad
        for name, dim in (("gate", 1), ("up", 1), ("down", 2)):
            ours = shard.experts.get_parameter(name).grad
            theirs = layer.experts.get_parameter(name).grad
            assert ours is not None
            assert theirs is not None
            where = (0, *span) if way is cut_experts else (dim, *span)
            assert close(ours, theirs.narrow(where[0], where[1], where[2] - where[1]))
    assert whole.grad is not None
    assert close(total, whole.grad)


@torch.no_grad()
@pytest.mark.parametrize("case", [c for c in ALL if c.name in ("llama", "gpt2", "mixtral")], ids=lambda case: case.name)
def test_a_wrong_slice_breaks_the_law(case: Case, root: Path) -> None:
    model = load(case.folder(root)).eval()
    x = torch.randn(2, 9, model.spec.stack.dim)
    for layer in layers(model.stack):
        whole = run(model.stack, layer, (0, 0), x, None, False)
        copies = 2 if isinstance(layer, Mixture) else 1
        pieces = shards(layer, 2)
        faulty = pieces[-1][0]
        for name, parameter in faulty.named_parameters():
            if name in ("q.weight", "up.weight", "experts.up"):
                parameter.copy_(parameter.flip(-2))  # rows in another order than the columns they belong to
        total = torch.stack([run(model.stack, shard, heads, x, None, False) for shard, heads in pieces]).sum(0)
        assert not close(total, whole * copies)
