"""Laws 2 and 3 for the row operators: each equals its reference, and a row's result depends on that row alone.

Every law runs on every unit that this machine can run: its own, AVX2, plain C++, and AMX emulated in C++.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.native import build
from openbook.native import rows as native
from openbook.nn import packed, rows, selective, spec
from openbook.nn.activation import REFERENCES, activate
from openbook.nn.moe import Experts, experts_reference
from openbook.nn.norm import Normalise
from openbook.nn.packed import Packed, PackedStack, RowLinear
from openbook.nn.scan import selective_reference
from openbook.nn.selective import StateSpace
from openbook.nn.serving import FORMS
from openbook.nn.state import Context, Dense, Recurrence
from tests.units import compiled, no_gradients, numbers, unit, unlike_alone

__all__ = ["no_gradients", "unit"]
pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: the reference does the work")

SIZES = [(1, 7), (17, 33), (100, 130), (40, 64)]  # out, in
COUNTS = (1, 2, 3, 5, 9, 33, 70)


def linear(kind: str, outs: int, ins: int) -> Callable[[Tensor], Tensor]:
    weight, bias = numbers(outs, ins, seed=1), numbers(outs, seed=2)
    if kind == "fp32":
        return RowLinear.of(torch.nn.Parameter(weight), torch.nn.Parameter(bias))
    smooth = numbers(ins, seed=3).abs() + 0.5 if kind == "int8" else None
    return Packed.of(weight, kind, bias, smooth)


def reference(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return layer.reference(x) if isinstance(layer, Packed) else F.linear(x, layer.weight, layer.bias)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------- products


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("outs", "ins"), SIZES)
def test_a_product_is_its_reference_and_a_rows_own(kind: str, outs: int, ins: int) -> None:
    layer = linear(kind, outs, ins)
    for count in COUNTS:
        x = numbers(count, ins, seed=count)
        x[0] = 0 if count == 5 else x[0]
        y, expected = layer(x), reference(layer, x)
        if kind == "int8":
            assert torch.equal(y, expected)
        else:
            assert (y - expected).abs().max() <= 3e-6 * max(1.0, float(expected.abs().max()))
        assert not unlike_alone(layer, x)


def test_a_scale_of_the_whole_batch_is_found() -> None:  # the seeded fault
    layer = linear("int8", 17, 33)
    assert isinstance(layer, Packed)

    def faulty(x: Tensor) -> Tensor:
        step = x.abs().max() / 127
        return (x / step).round() * step @ layer.unpack().t()

    assert unlike_alone(faulty, numbers(5, 33))


def test_one_wrong_tile_is_found() -> None:  # the seeded fault
    layer = linear("int8", 17, 33)
    assert isinstance(layer, Packed)
    x = numbers(3, 33)
    expected = layer.reference(x)
    layer.tiles.flatten()[5] += 1
    assert not torch.equal(layer(x), expected)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("kind", FORMS)
def test_a_row_of_nan_stays_by_itself(kind: str) -> None:
    layer = linear(kind, 100, 130)
    x = numbers(7, 130)
    clean = layer(x)
    for value in (float("nan"), float("inf")):
        x[3, 60] = value
        y = layer(x)
        assert not torch.isfinite(y[3]).any()
        assert torch.equal(torch.cat([y[:3], y[4:]]), torch.cat([clean[:3], clean[4:]]))


@pytest.mark.parametrize("kind", packed.KINDS)
def test_packing_keeps_the_weights(kind: str) -> None:
    weight, other = numbers(100, 130), numbers(100, 130, seed=9)
    layer = Packed.of(weight, kind)
    for now in (weight, other):
        bound = weight.new_zeros(()) if kind == "bf16" else now.abs().amax(dim=1, keepdim=True) / 253
        assert ((layer.unpack() - (now.bfloat16().float() if kind == "bf16" else now)).abs() <= bound).all()
        layer.assign(other)
    assert torch.equal(layer(weight), Packed.of(other, kind)(weight))


@pytest.mark.parametrize("kind", packed.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("unit")
def test_packing_is_its_reference(kind: str, dtype: torch.dtype) -> None:
    for outs, ins in SIZES:
        weight = numbers(outs, ins).to(dtype)
        weight[0] = 0
        whole, scale = packed.quantise(weight.float()) if kind == "int8" else (weight.bfloat16(), None)
        layer = Packed.of(weight, kind)
        assert torch.equal(layer.tiles, packed.pack(whole))
        assert scale is None or torch.equal(layer.scale, scale)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("kind", FORMS)
def test_a_group_is_its_own_product(kind: str) -> None:
    stacked, x = numbers(4, 33, 70), numbers(23, 70)
    ends = torch.tensor([5, 5, 20, 21], dtype=torch.int32)
    if kind == "fp32":
        y = packed.grouped(x, stacked, ends)
        assert y is not None
    else:
        y = PackedStack.of(stacked, kind).grouped(x, ends)
    start = 0
    for expert, end in enumerate(ends.tolist()):
        one = RowLinear.of(torch.nn.Parameter(stacked[expert].clone()), None)
        layer = one if kind == "fp32" else Packed.of(stacked[expert], kind)
        assert torch.equal(y[start:end], layer(x[start:end])) if end > start else True
        start = end
    assert not y[21:].any()


@pytest.mark.parametrize(("top_k", "dim"), [(2, 24), (4, 33), (8, 130)])
def test_experts_do_not_know_of_other_tokens(top_k: int, dim: int) -> None:
    experts = Experts(spec.MoE(experts=9, top_k=top_k, expert=spec.MLP(hidden=20)), dim)
    for parameter in experts.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    x, router = numbers(31, dim), numbers(9, dim, seed=4)

    def run(tokens: Tensor) -> Tensor:
        weights, chosen = packed.product(tokens, router, None).softmax(-1).topk(top_k, -1)
        return experts(tokens, chosen, weights / weights.sum(dim=-1, keepdim=True))

    assert not unlike_alone(run, x)
    weights, chosen = packed.product(x, router, None).softmax(-1).topk(top_k, -1)
    expected = experts_reference(experts, x, chosen, weights / weights.sum(dim=-1, keepdim=True))
    assert (run(x) - expected).abs().max() <= 3e-6 * max(1.0, float(expected.abs().max()))


def test_a_router_does_not_know_of_other_tokens() -> None:
    for experts in (5, 8, 60):
        logits = numbers(70, experts, seed=experts)
        assert not unlike_alone(lambda x: x.softmax(dim=-1).topk(3, dim=-1).values, logits)


# ---------------------------------------------------------------------------------------------- norms and functions


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dim", [7, 48, 130])
def test_a_norm_is_its_reference_and_a_rows_own(kind: str, dim: int) -> None:
    norm = Normalise(spec.Norm(kind=kind, eps=1e-5, bias=kind == "layer", offset=0.5), dim)  # type: ignore[arg-type]
    for parameter in norm.parameters():
        parameter.copy_(numbers(dim, seed=1))
    x = numbers(33, dim)
    with torch.enable_grad():
        expected = norm(x).detach()
    assert (norm(x) - expected).abs().max() <= 2e-6 * float(expected.abs().max())
    assert not unlike_alone(norm, x)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("name", REFERENCES)
def test_a_function_is_its_reference_and_a_rows_own(name: str) -> None:
    sizes = torch.tensor([1e-6, 1e-3, 0.1, 1.0, 4.0, 20.0, 80.0])
    x = (torch.randn(33, 7 * 19) * sizes.repeat(19)).clamp(-87, 87)
    x[1, :5] = torch.tensor([0.0, -0.0, 1e-30, 60.0, -60.0])
    y, expected = activate(name, x), REFERENCES[name](x)
    assert ((y - expected).abs() <= 1e-6 * expected.abs() + 2e-6 * (name in ("gelu", "gelu_tanh", "quick_gelu"))).all()
    assert not unlike_alone(lambda row: activate(name, row), x)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert torch.equal(activate(name, odd).isnan(), REFERENCES[name](odd).isnan()) or name.startswith("gelu")


def test_the_first_numbers_of_a_vector_are_found() -> None:  # the seeded fault: a tail by other code
    def faulty(x: Tensor) -> Tensor:
        y = x.flatten().clone()
        y[-3:] = y[-3:] * (1 + 1e-6)
        return y.view_as(x)

    assert unlike_alone(faulty, numbers(5, 33))


# ---------------------------------------------------------------------------------------------- state spaces


def state_space() -> StateSpace:
    torch.manual_seed(0)
    layer = StateSpace(spec.Selective(inner=40, state=5, kernel=3, rank=3), 24)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    layer.index = 0
    for name, part in list(layer.named_children()):
        setattr(layer, name, RowLinear.of(part.weight, part.bias))
    return layer.eval()


class Slot(Dense):
    """A dense state that keeps what a recurrent layer gives it."""

    kept: tuple[Tensor, ...] | None = None

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:  # noqa: ARG002
        out, self.kept = run(x, self.kept, self.segments)
        return out


def chunked(layer: StateSpace, x: Tensor, sizes: list[int], segments: Tensor | None = None) -> Tensor:
    """x [B,T,D] through the layer, some tokens at a time."""
    state = Slot(torch.zeros(x.shape[:2], dtype=torch.int64), None, (), x.shape[1])
    state.kept = tuple(torch.zeros(len(x), *shape) for shape in layer.declare().shapes)
    parts, start = [], 0
    for size in sizes:
        state.segments = None if segments is None else segments[:, start : start + size]
        parts.append(layer(x[:, start : start + size], Context(state, ())))
        start += size
    return torch.cat(parts, dim=1)


@pytest.mark.usefixtures("unit")
def test_a_scan_is_its_reference_and_knows_no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = state_space(), numbers(3, 19, 24)
    whole = chunked(layer, x, [19])
    with torch.enable_grad(), monkeypatch.context() as patch:
        patch.setattr(selective, "scan", selective_reference)
        assert (whole - chunked(layer, x, [19]).detach()).abs().max() <= 2e-6 * float(whole.abs().max())
    for sizes in ([1] * 19, [5, 1, 13], [16, 3]):
        assert torch.equal(chunked(layer, x, sizes), whole)
    assert torch.equal(chunked(layer, x[1:2], [19])[0], whole[1])
    segments = torch.tensor([[1] * 7 + [2] * 12, [1] * 15 + [0] * 4, [0] * 3 + [1] * 16])
    marked = chunked(layer, x, [19], segments)
    with torch.enable_grad(), monkeypatch.context() as patch:
        patch.setattr(selective, "scan", selective_reference)
        expected = chunked(layer, x, [19], segments).detach()
    real = segments != 0
    assert (marked - expected)[real].abs().max() <= 2e-6 * float(whole.abs().max())
    assert torch.equal(marked[1, :15], whole[1, :15])


def test_gradients_go_through_the_reference() -> None:
    x = numbers(3, 33).requires_grad_()
    with torch.enable_grad():
        activate("silu", x).sum().backward()
        linear("fp32", 17, 33)(x).sum().backward()
    assert x.grad is not None
    assert rows.usable(x) is not None  # without gradients it is native


def test_a_unit_is_tried_before_it_is_used(tmp_path: Path) -> None:
    assert build.tried(compiled("amx"), "openbook_rows_trial")
    assert not build.tried(compiled("plain"), "openbook_rows_trial")  # it has no tiles
    source = tmp_path / "crash.cpp"
    source.write_text('extern "C" int crash() { __builtin_trap(); }\n', encoding="utf-8")
    library = build.load(f"crash-{tmp_path.name}", (str(source),), [()])
    assert library is not None
    assert not build.tried(library, "crash")  # the seeded fault ends a process that is not this one
    Path(library._name).unlink()
    Path(library._name).with_suffix(".crash").unlink()
