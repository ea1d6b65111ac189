"""Law 2: every fast path equals its reference, outputs and gradients; every layer traces whole.

Maximum absolute difference ≤ 1e-5 × max(1, largest reference value) in fp32. Each law has a seeded fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from openbook.models.load import load, save
from openbook.models.make import fuse, unfuse
from openbook.nn import attend, grouped, moe, spec, stack
from openbook.nn import scan as scans
from openbook.nn.model import LanguageModel
from openbook.nn.state import Context, Dense, Source, count_positions, visible
from tests.families import ALL, DECODERS, Case, each, tokens
from tests.nn import recurrent

BOUND = 1e-5

QUICK = ("llama", "mixtral", "mamba", "bert", "t5")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def close(ours: Tensor, theirs: Tensor, bound: float = BOUND) -> bool:
    """The law's bound; NaN is never close."""
    difference = (ours.float() - theirs.float()).abs().max()
    return bool(difference <= bound * max(1.0, float(theirs.abs().max())))


def agree(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: Sequence[Tensor], bound: float = BOUND
) -> bool:
    """Whether two functions give the same output and the same gradients of all floating inputs."""
    found = []
    for function in (fast, slow):
        own = [one.clone().requires_grad_(one.is_floating_point()) for one in inputs]
        out = function(*own)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        (out * weights).sum().backward()
        found.append([out.detach(), *(one.grad for one in own if one.is_floating_point() and one.grad is not None)])
    return len(found[0]) == len(found[1]) and all(close(a, b, bound) for a, b in zip(*found, strict=True))


# ------------------------------------------------------------------------------------------------ attention

PATTERNS = {
    "causal": spec.Pattern(),
    "both ways": spec.Pattern(causal=False),
    "window": spec.Pattern(window=3),
    "window of one": spec.Pattern(window=1),
    "window both ways": spec.Pattern(causal=False, window=4),
    "chunks": spec.Pattern(chunk=4),
}
HEADS = [(4, 4), (6, 2), (5, 1)]


def attention_case(
    heads: int, kv_heads: int, pattern: spec.Pattern, segments: bool, biased: bool
) -> tuple[list[Tensor], Tensor | None, bool]:
    """q, k, v (and a bias), the mask, and whether the pattern alone says it."""
    rows, count, size = 2, 11, 7
    q, k = torch.randn(rows, count, heads, size), torch.randn(rows, count, kv_heads, size)
    v = torch.randn(rows, count, kv_heads, size + 2)
    places = torch.arange(count)
    seen = visible(pattern, places, places)[None, None]
    if segments:
        numbers = torch.tensor([[1] * 5 + [2] * 4 + [0] * 2, [3] * 11])
        same = numbers[:, None, :, None] == numbers[:, None, None, :]
        seen = (seen & same & (numbers != 0)[:, None, None]) | torch.eye(count, dtype=torch.bool)
    alone = not segments and pattern.window is None and pattern.chunk is None
    bias = [torch.randn(1, heads, count, count).masked_fill(~seen, float("-inf"))] if biased else []
    return [q, k, v, *bias], None if alone else seen, alone and pattern.causal


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["", "softcap"])
@pytest.mark.parametrize("segments", [False, True], ids=["", "segments"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_attention(
    heads: int, kv_heads: int, pattern: spec.Pattern, segments: bool, softcap: float | None, biased: bool
) -> None:
    inputs, seen, causal = attention_case(heads, kv_heads, pattern, segments, biased)

    def run(mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v, bias=None: mix(q, k, v, seen, causal, 0.3, softcap, 0.0, bias)

    assert agree(run(attend.mix), run(attend.mix_reference), inputs)


def test_attention_over_another_length() -> None:
    q, k, v = torch.randn(2, 3, 4, 6), torch.randn(2, 9, 2, 6), torch.randn(2, 9, 2, 6)
    seen = torch.rand(2, 1, 3, 9) > 0.4
    seen[..., 0] = True
    for mask in (None, seen):
        run = [lambda *args, m=mix, s=mask: m(*args, s, False, 0.5) for mix in (attend.mix, attend.mix_reference)]
        assert agree(run[0], run[1], [q, k, v])


@pytest.mark.parametrize(
    "fault",
    [
        lambda q, k, v: attend.mix(q, k, v, None, False, 0.3),  # forgets that it is causal
        lambda q, k, v: attend.mix(q, k, v, None, True, 0.31),  # another scale
        lambda q, k, v: attend.mix(q, k.roll(1, 2), v, None, True, 0.3),  # another group's keys
        lambda q, k, v: attend.mix(q, k, v.detach(), None, True, 0.3) + 0 * v.sum(),  # no gradient for v
    ],
)
def test_attention_faults_are_found(fault: Callable[..., Tensor]) -> None:
    inputs, _, _ = attention_case(6, 2, spec.Pattern(), segments=False, biased=False)
    assert not agree(fault, lambda q, k, v: attend.mix_reference(q, k, v, None, True, 0.3), inputs)


def test_attention_in_bf16_is_near() -> None:
    inputs, seen, causal = attention_case(6, 2, spec.Pattern(window=3), segments=True, biased=False)
    half = attend.mix(*(one.bfloat16() for one in inputs), seen, causal, 0.3)
    assert half.dtype == torch.bfloat16
    assert close(half, attend.mix_reference(*inputs, seen, causal, 0.3), 0.03)


# ------------------------------------------------------------------------------------------------ scan


def scan_case(rows: int, count: int, channels: int, size: int) -> list[Tensor]:
    decay = torch.rand(rows, count, channels, size)
    decay[:, count // 2, 0] = 0.0  # a new segment
    decay[:, count // 3, -1] = 1.0  # padding
    return [decay, torch.randn(rows, count, channels, size), torch.randn(rows, channels, size)]


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 64, 65, 130])
def test_scan(count: int) -> None:
    assert agree(scans.scan, scans.scan_reference, scan_case(2, count, 3, 4))


@torch.no_grad()
@given(count=st.integers(2, 70), chunk=st.integers(1, 40))
def test_scan_in_chunks(count: int, chunk: int) -> None:
    case = scan_case(2, count, 3, 2)
    assert close(scans.run(*case, chunk), scans.scan_reference(*case))


def test_scan_faults_are_found() -> None:
    def forgets_the_start(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
        return scans.scan(decay, inputs, start * 0)

    def forgets_a_gradient(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
        return scans.scan(decay.detach(), inputs, start) + 0 * decay.sum()

    for fault in (forgets_the_start, forgets_a_gradient):
        assert not agree(fault, scans.scan_reference, scan_case(2, 20, 3, 4))


def test_scan_keeps_two_tensors() -> None:
    """Its memory does not grow with the number of steps it is made of."""
    decay, inputs, start = (one.requires_grad_() for one in scan_case(1, 128, 4, 4))
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scans.scan(decay, inputs, start)
    assert sum(saved.values()) == decay.numel() + inputs.numel() + start.numel()


# ------------------------------------------------------------------------------------------------ experts

SIZES = [(16, 24, 4), (7, 13, 3), (36, 5, 6), (1, 1, 1)]  # D, F, E: whole 16 bytes and not


EXPERTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biased": {"bias": True, "activation": "quick_gelu", "limit": 0.7, "offset": 1.0},
    "scaled before": {"bias": True, "before": True},
}


@pytest.mark.parametrize(("dim", "hidden", "experts"), SIZES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("count", [1, 2, 29])
@pytest.mark.parametrize("more", EXPERTS.values(), ids=EXPERTS)
def test_experts(dim: int, hidden: int, experts: int, gated: bool, count: int, more: dict[str, Any]) -> None:
    layer, inputs = experts_case(dim, hidden, experts, gated, count, **more)
    chosen = inputs.pop()

    def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, weights: Tensor, *matrices: Tensor) -> Tensor:
            filled = {f"layer.{n}": m for (n, _), m in zip(layer.named_parameters(), matrices, strict=True)}
            return torch.func.functional_call(Bound(layer, function), filled, (x, chosen, weights))

        return call

    assert agree(run(lambda layer, *args: layer(*args)), run(moe.experts_reference), inputs)


class Bound(nn.Module):
    """A function of the experts as a module, so that their parameters can be handed in."""

    def __init__(self, layer: moe.Experts, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self.layer, *args)


def experts_case(
    dim: int, hidden: int, experts: int, gated: bool, count: int, before: bool = False, **more: Any
) -> tuple[moe.Experts, list[Tensor]]:
    """Experts, and x, weights, their matrices, the choice. The last expert gets no token where there are several."""
    top = min(2, experts)
    mlp = spec.MLP(hidden=hidden, gated=gated, **more)
    mixture = spec.MoE(experts=experts, top_k=top, expert=mlp, routing=spec.Routing(input_scaled=before))
    layer = moe.Experts(mixture, dim)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    scores = torch.rand(count, experts)
    if experts > top:
        scores[:, -1] = -1
    weights, chosen = scores.topk(top, dim=-1)
    return layer, [torch.randn(count, dim), weights, *(p.detach() for p in layer.parameters()), chosen]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "hidden", "experts"), SIZES)
def test_grouped_product(dim: int, hidden: int, experts: int, dtype: torch.dtype) -> None:
    ends = torch.tensor([min(9, 4 * (e + 1)) for e in range(experts)], dtype=torch.int32)
    ends[-1] = 9
    inputs = [torch.randn(9, dim).to(dtype), torch.randn(experts, hidden, dim).to(dtype)]
    bound = BOUND if dtype == torch.float32 else 0.02
    assert agree(
        lambda rows, stacked: grouped.grouped(rows, stacked, ends),
        lambda rows, stacked: grouped.grouped_reference(rows, stacked, ends),
        inputs,
        bound,
    )


def test_experts_faults_are_found() -> None:
    layer, (x, weights, *_, chosen) = experts_case(16, 24, 4, True, 29)
    layer.requires_grad_(False)
    right = moe.experts_reference(layer, x, chosen, weights)
    assert close(layer(x, chosen, weights), right)
    assert not close(layer(x, chosen.flip(1), weights), right)  # the weights of another expert
    layer.gate[2, 0] += 1e-2  # type: ignore[index]
    assert not close(layer(x, chosen, weights), right)


# ------------------------------------------------------------------------------------------------ fused matrices


def forward(model: LanguageModel, case: Case, ids: Tensor) -> Tensor:
    if case.kind == "encoder-decoder":
        return model(ids[:, :7], source=ids)
    return model(ids)


def gradients(model: LanguageModel, case: Case, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    out = forward(model, case, ids)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def whole(case: Case, root: Path) -> LanguageModel:
    """The case's model, its parameters in memory of their own."""
    model = load(case.folder(root))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.no_grad()
@each(ALL)
def test_fused_equals_unfused(case: Case, root: Path, tmp_path: Path) -> None:
    ids = tokens(case, 2, 13)
    model, other = whole(case, root), whole(case, root)
    before = forward(model, case, ids)
    assert fuse(other) is other
    assert other.rewrites == ["fuse"]
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert other.state_dict().keys() == model.state_dict().keys()
    assert close(forward(other, case, ids), before)
    save(model, tmp_path / "plain")
    save(other, tmp_path / "fused")
    assert files(tmp_path / "plain") == files(tmp_path / "fused")
    unfuse(other)
    assert other.rewrites == []
    assert torch.equal(forward(other, case, ids), before)
    storages = [parameter.untyped_storage().data_ptr() for parameter in other.parameters()]
    assert len(set(storages)) == len(storages)


@each(ALL)
def test_fused_gradients_equal_unfused(case: Case, root: Path) -> None:
    ids = tokens(case, 2, 13)
    slow = gradients(whole(case, root), case, ids)
    fast = gradients(fuse(whole(case, root)), case, ids)
    assert fast.keys() == slow.keys()
    assert all(close(fast[name], slow[name]) for name in slow)


def test_fusing_twice_is_fusing_once(root: Path) -> None:
    model = whole(DECODERS[0], root)
    fuse(fuse(model))
    assert model.rewrites == ["fuse"]
    unfuse(unfuse(model))
    assert model.rewrites == []


@torch.no_grad()
def test_a_weight_changed_in_place_is_seen_by_the_fused_matrix(root: Path) -> None:
    """Pushed weights and optimisers write into the logical parameters."""
    case = DECODERS[0]
    ids = tokens(case, 1, 9)
    model, other = fuse(whole(case, root)), whole(case, root)
    for changed in (model, other):
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    assert close(forward(model, case, ids), forward(other, case, ids))


@torch.no_grad()
def test_fusing_faults_are_found(root: Path) -> None:
    case = DECODERS[0]
    ids = tokens(case, 1, 9)
    model = whole(case, root)
    right = forward(model, case, ids)
    fuse(model)
    layer = model.stack.blocks[0].get_submodule("branches.0.layer")
    layer.fused.weight = layer.fused.weight.flip(0)  # type: ignore[union-attr,operator]
    assert not close(forward(model, case, ids), right)


# ------------------------------------------------------------------------------------------------ tracing


def context(model: LanguageModel, rows: int, count: int, segmented: bool) -> tuple[Tensor, Context]:
    """Hidden states and everything a block may know, as the model makes them."""
    segments = None
    if segmented:
        segments = torch.ones(rows, count, dtype=torch.int64)
        segments[:, count // 2 :] = 2
        segments[0, -1] = 0
    positions = count_positions(torch.ones(rows, count, dtype=torch.int64) if segments is None else segments)
    state = Dense(positions, segments, model.stack.patterns, count)
    rotary = tuple(table.rows(positions, 128, 128, torch.float32) for table in model.stack.tables)
    source = Source(torch.randn(rows, 7, model.spec.stack.dim), None) if model.source is not None else None
    ctx = model.stack.prepare(Context(state, rotary, source), torch.float32)
    return torch.randn(rows, count, model.spec.stack.dim, requires_grad=True), ctx


class Counter:
    """A compiler that runs what it is given, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:  # noqa: ARG002
        self.graphs += 1
        return graph.forward


@pytest.fixture
def fresh() -> Iterator[None]:
    """No compiled code of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def different(model: LanguageModel) -> list[stack.ResidualBlock]:
    """One block of each kind."""
    found: dict[spec.Block, stack.ResidualBlock] = {}
    for block in model.stack.blocks:
        assert isinstance(block, stack.ResidualBlock)
        found.setdefault(block.spec, block)
    return list(found.values())


@pytest.mark.parametrize("segmented", [False, True], ids=["plain", "segments"])
@each(ALL, quick=QUICK)
@pytest.mark.usefixtures("fresh")
def test_blocks_trace_whole(case: Case, segmented: bool, root: Path) -> None:
    """fullgraph: a block that the compiler must leave half-way fails here. Gradients go through the traced block."""
    traces_whole(load(case.folder(root)).train(), segmented)


@pytest.mark.parametrize("segmented", [False, True], ids=["plain", "segments"])
@pytest.mark.parametrize("name", [*recurrent.LANGUAGE, "bahdanau", "luong-general-fed"])
@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_recurrent_blocks_trace_whole(name: str, segmented: bool) -> None:
    traces_whole(recurrent.random(recurrent.ALL[name]).train(), segmented)


def traces_whole(model: LanguageModel, segmented: bool) -> None:
    """Traced and not, the blocks give the same, and the same gradients."""
    for module in model.modules():
        if isinstance(module, stack.ResidualBranch):
            module.eval()  # no dropout: both runs must draw nothing
    for block in different(model):
        traced = torch.compile(block, backend=Counter(), fullgraph=True)
        x, ctx = context(model, 2, 16, segmented)
        found = []
        for run in (traced, block):
            own = x.detach().clone().requires_grad_()
            out = run(own, ctx)
            out.square().sum().backward(retain_graph=True)  # the position bias is shared by both runs
            found.append((out.detach(), own.grad))
        assert close(found[0][0], found[1][0])
        assert close(found[0][1], found[1][1])


@each(ALL, quick=QUICK)
@pytest.mark.usefixtures("fresh")
def test_new_lengths_compile_nothing(case: Case, root: Path) -> None:
    """Two lengths teach the compiler that lengths vary; no later one costs anything."""
    compiles_no_length(load(case.folder(root)))


@pytest.mark.parametrize("name", recurrent.LANGUAGE)
@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_new_lengths_of_recurrent_blocks_compile_nothing(name: str) -> None:
    """Decoders that look at a source are unrolled: they are not compiled (train/speed.py)."""
    compiles_no_length(recurrent.random(recurrent.ALL[name]))


def compiles_no_length(model: LanguageModel) -> None:
    """Every kind of block is compiled at most twice."""
    for block in different(model):
        counter = Counter()
        traced = torch.compile(block, backend=counter, fullgraph=True)
        for count in (16, 24):
            traced(*context(model, 2, count, True))
        warm = counter.graphs
        for count in (32, 19, 41, 27, 100):
            traced(*context(model, 2, count, True))
        assert counter.graphs == warm <= 2


@pytest.mark.usefixtures("fresh")
def test_a_block_that_asks_the_host_is_found(root: Path) -> None:
    model = load(DECODERS[0].folder(root))

    class Asks(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor, ctx: Context) -> Tensor:
            return self.block(x, ctx) if x.sum().item() > 0 else x

    with pytest.raises(Exception, match=r"(?i)data-dependent|graph break|item"):
        torch.compile(Asks(model.stack.blocks[0]), backend="eager", fullgraph=True)(*context(model, 1, 8, False))


@pytest.mark.usefixtures("fresh")
def test_a_block_that_depends_on_each_length_is_found() -> None:
    counter = Counter()

    class Unrolls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x[:, 0]
            for step in range(x.shape[1]):
                total = total + x[:, step]
            return total

    traced = torch.compile(Unrolls(), backend=counter, fullgraph=True)
    for count in (3, 4, 5, 6):
        traced(torch.randn(1, count, 2))
    assert counter.graphs > 2


@pytest.mark.parametrize("op", ["grouped", "scan"])
def test_operators_are_well_formed(op: str) -> None:
    """torch's own checks: schema, shapes without data, gradients through autograd's registration."""
    if op == "scan":
        torch.library.opcheck(torch.ops.openbook.scan.default, tuple(t.requires_grad_() for t in scan_case(1, 5, 2, 3)))
    else:
        ends = torch.tensor([2, 5], dtype=torch.int32)
        rows, stacked = torch.randn(5, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
        torch.library.opcheck(torch.ops.openbook.grouped.default, (rows, stacked, ends))


def test_every_family_is_here() -> None:
    """The laws above run on every family that can be made."""
    from openbook.models.registry import known

    covered = {case.reference().config.model_type for case in ALL}
    others = {"openbook", "kimi_k2"}  # any spec; another family's layout, held to it in test_latent_families.py
    assert covered == set(known()) - others
