"""Laws 1 to 3 for layers that keep a state: every form is the recurrence, and what a row gets depends on it alone.

The definitions are written token after token, S4D's from the formulas of its paper. Outputs and gradients: maximum
absolute difference ≤ 1e-5 × max(1, largest reference value) in fp32. Served: bit for bit, however a row is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openbook.errors import ConfigError
from openbook.hardware import cpu_features
from openbook.models.make import make
from openbook.native import build as compiler
from openbook.native import scan as native
from openbook.nn import delta, dual, scan, spec, structured
from openbook.nn.build import build
from openbook.nn.linear import Linear
from openbook.nn.packed import RowLinear
from openbook.nn.state import Context, Dense, Recurrence, Stateful
from tests.laws.served import drawn, engine_of, greedy, prompts_of, said

BOUND = 1e-5
Pair = tuple[Tensor, Tensor]


def close(ours: Tensor, theirs: Tensor, bound: float = BOUND) -> bool:
    """NaN is never close."""
    return bool((ours - theirs).abs().max() <= bound * max(1.0, float(theirs.abs().max())))


def agree(fast: Callable[..., Pair], slow: Callable[..., Pair], inputs: Sequence[Tensor]) -> bool:
    """Whether two recurrences give the same outputs, last states and gradients of all inputs."""
    found = []
    for function in (fast, slow):
        own = [one.clone().requires_grad_() for one in inputs]
        outputs = [torch.view_as_real(one) if one.is_complex() else one for one in function(*own)]
        sum((out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum() for out in outputs).backward()
        found.append([one.detach() for one in outputs] + [one.grad for one in own])
    return all(
        a is not None
        and b is not None
        and close(torch.view_as_real(a) if a.is_complex() else a, torch.view_as_real(b) if b.is_complex() else b)
        for a, b in zip(*found, strict=True)
    )


def marks_of(rows: int, count: int) -> Tensor:
    """Padding before, within and behind, and segments that begin anywhere."""
    mark = torch.ones(rows, count, dtype=torch.int64)
    mark[0, count // 2], mark[-1, 0], mark[-1, 2:4] = 2, 2, 0
    mark[0, count - 3 :] = 0
    return mark


MARKED = pytest.mark.parametrize("marked", [False, True], ids=["plain", "segments"])

# ------------------------------------------------------------------------------------------------ selective


def selective_case(count: int, channels: int, groups: int, states: int, decays: int) -> list[Tensor]:
    torch.manual_seed(count + channels)
    shared = [torch.randn(2, count, groups, states) for _ in range(2)]
    floats = [torch.randn(2, count, channels), torch.rand(2, count, channels) * 0.5, *shared]
    return [*floats, -torch.rand(decays, channels) * 2 - 0.1, torch.randn(channels), torch.randn(2, states, channels)]


def selective_definition(*inputs: Tensor, mark: Tensor | None) -> Pair:
    return scan.selective_reference(*inputs[:6], mark, inputs[6], states=scan.scan_reference)


def selective_native(*inputs: Tensor, mark: Tensor | None) -> Pair:
    return scan.selective(*inputs[:6], mark, inputs[6])


SHAPES = [(70, 40, 1, 5, 5), (45, 39, 3, 5, 1), (33, 16, 1, 16, 16), (7, 17, 1, 16, 16), (1, 6, 2, 3, 3)]


@MARKED
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_native_scan_is_the_recurrence(shape: tuple[int, ...], marked: bool) -> None:
    mark = marks_of(2, shape[0]) if marked and shape[0] > 4 else None
    inputs = selective_case(*shape)
    assert agree(partial(selective_native, mark=mark), partial(selective_definition, mark=mark), inputs)


@pytest.mark.parametrize("flags", [("-O1",), ("-O1", "-mavx2", "-mfma")], ids=["plain", "avx2"])
def test_every_unit_is_the_recurrence(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if len(flags) > 1 and "AVX2" not in cpu_features():
        pytest.skip("no AVX2 here")
    library = compiler.load("scan", native.SOURCES, [(*native.EXACT, *flags)])
    assert library is not None
    native.declared(library)
    monkeypatch.setattr(native, "library", lambda: library)
    mark = marks_of(2, 45)
    for shape in SHAPES[1:3]:
        inputs = selective_case(45, *shape[1:])
        assert agree(partial(selective_native, mark=mark), partial(selective_definition, mark=mark), inputs)
    with torch.no_grad():
        given = delta_case(20)
        found, expected = delta.exact(*given[:5], None, given[5]), delta.recurrence(*given[:5], None, given[5])
        assert found is not None
        assert all(close(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "fault",
    [
        lambda *x, mark: scan.selective(*x[:6], mark.clamp(max=1), x[6]),  # nothing ever starts anew
        lambda *x, mark: scan.selective(*x[:6], mark.clamp(min=1), x[6]),  # padding is a token
        lambda *x, mark: scan.selective(*x[:6], mark, x[6] * 0 + x[6].detach()),  # the state before learns nothing
        lambda *x, mark: scan.selective(*x[:3], x[3].flip(2), *x[4:6], mark, x[6]),  # another group's reading
    ],
)
def test_faults_of_a_scan_are_found(fault: Callable[..., Pair]) -> None:
    mark, inputs = marks_of(2, 45), selective_case(45, 39, 3, 5, 1)
    assert not agree(partial(fault, mark=mark), partial(selective_definition, mark=mark), inputs)


def test_a_scan_keeps_one_state_in_many() -> None:
    """What the backward pass is kept for grows with T·C, not with T·C·N."""
    inputs = [one.requires_grad_() for one in selective_case(256, 32, 1, 16, 16)]
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
        selective_native(*inputs, mark=None)
    assert sum(sizes.values()) < 2 * 256 * 32 * 16 / 3


def test_a_scan_without_a_compiler_is_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = selective_case(20, 12, 1, 4, 4)
    expected = selective_native(*inputs, mark=None)
    monkeypatch.setattr(scan, "_compiled", lambda _: False)
    assert all(close(a, b) for a, b in zip(selective_native(*inputs, mark=None), expected, strict=True))


# ------------------------------------------------------------------------------------------------ dual


def dual_case(count: int) -> list[Tensor]:
    torch.manual_seed(count)
    shared = [torch.randn(2, count, 2, 7) for _ in range(2)]
    return [torch.randn(2, count, 6, 5), torch.rand(2, count, 6), *shared, -torch.rand(6), torch.randn(2, 6, 5, 7)]


def dual_definition(
    x: Tensor, step: Tensor, write: Tensor, read: Tensor, decay: Tensor, start: Tensor, mark: Tensor | None
) -> Pair:
    """Token after token, by the scan of single channels."""
    step, decay = step.repeat_interleave(5, dim=-1), decay.repeat_interleave(5).unsqueeze(0)
    state = start.flatten(1, 2).transpose(1, 2)
    y, last = selective_definition(x.flatten(2), step, write, read, decay, torch.zeros(30), state, mark=mark)
    return y.unflatten(-1, (6, 5)), last.transpose(1, 2).unflatten(1, (6, 5))


@MARKED
@pytest.mark.parametrize(("count", "chunk"), [(75, 16), (16, 16), (5, 16), (40, 64)])
def test_blocks_are_the_recurrence(count: int, chunk: int, marked: bool) -> None:
    mark = marks_of(2, count) if marked else None
    assert agree(
        lambda *x: dual.blocks(*x[:5], mark, x[5], chunk), lambda *x: dual_definition(*x, mark), dual_case(count)
    )


def test_faults_of_blocks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mark, inputs = marks_of(2, 40), dual_case(40)
    real = dual.spans
    monkeypatch.setattr(dual, "spans", lambda log_decay, _, chunk: real(log_decay, None, chunk))  # nothing is a border
    assert not agree(lambda *x: dual.blocks(*x[:5], mark, x[5], 16), lambda *x: dual_definition(*x, mark), inputs)


# ------------------------------------------------------------------------------------------------ delta


def delta_case(count: int) -> list[Tensor]:
    torch.manual_seed(count)
    q, k = torch.randn(2, count, 2, 5), nn.functional.normalize(torch.randn(2, count, 2, 5), dim=-1)
    rates = [-torch.rand(2, count, 6) * 0.3, torch.rand(2, count, 6)]
    return [q, k, torch.randn(2, count, 6, 19), *rates, torch.randn(2, 6, 5, 19)]


@MARKED
@pytest.mark.parametrize(("count", "chunk"), [(75, 16), (16, 16), (5, 16), (1, 64)])
def test_the_delta_rule_in_blocks_is_the_recurrence(count: int, chunk: int, marked: bool) -> None:
    mark, inputs = marks_of(2, count) if marked and count > 4 else None, delta_case(count)
    assert agree(
        lambda *x: delta.blocks(*x[:5], mark, x[5], chunk), lambda *x: delta.recurrence(*x[:5], mark, x[5]), inputs
    )
    with torch.no_grad():
        found = delta.exact(*inputs[:5], mark, inputs[5])
        assert (found is None) == (native.library() is None)
        if found is not None:
            expected = delta.recurrence(*inputs[:5], mark, inputs[5])
            assert all(close(a, b) for a, b in zip(found, expected, strict=True))


def test_faults_of_the_delta_rule_are_found() -> None:
    def uncorrected(*x: Tensor) -> Pair:  # plain linear attention: nothing is taken back
        return delta.blocks(x[0], x[1], x[2], x[3], x[4] * 0.999, None, x[5], 16)

    assert not agree(uncorrected, lambda *x: delta.recurrence(*x[:5], None, x[5]), delta_case(40))


# ------------------------------------------------------------------------------------------------ S4D


def s4d(**more: Any) -> structured.StructuredSpace:
    layer = structured.StructuredSpace(spec.Structured(state=12, **more), 9)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
        layer.frequency.mul_(5)
        layer.step.sub_(1.5)
    return layer


def paper(layer: structured.StructuredSpace, x: Tensor) -> Tensor:
    """Gu et al. 2022, §3: each feature by itself, the kernel by explicit powers, the convolution by its sum."""
    out = torch.zeros_like(x)
    for feature in range(x.shape[2]):
        step = math.exp(float(layer.step[feature]))
        kernel = torch.zeros(x.shape[1], dtype=torch.float64)
        for n in range(layer.log_decay.shape[1]):
            pole = complex(-math.exp(float(layer.log_decay[feature, n])), float(layer.frequency[feature, n]))
            read = complex(*layer.read[feature, n].tolist())
            if layer.spec.discretisation == "zoh":
                turn = torch.exp(torch.tensor(step * pole, dtype=torch.complex128)).item()
                write = (turn - 1) / pole
            else:
                turn, write = (1 + step * pole / 2) / (1 - step * pole / 2), step / (1 - step * pole / 2)
            for place in range(x.shape[1]):
                kernel[place] += 2 * (read * turn**place * write).real
        for t in range(x.shape[1]):
            past = x[:, : t + 1, feature].flip(1).double()
            out[:, t, feature] = (past * kernel[: t + 1]).sum(1).float() + float(layer.skip[feature]) * x[:, t, feature]
    return out


@torch.no_grad()
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_s4d_is_what_its_paper_says(rule: str) -> None:
    layer, x = s4d(discretisation=rule), torch.randn(2, 21, 9)
    expected, start = paper(layer, x), torch.zeros(2, 9, 6, dtype=torch.complex64)
    system = layer.system()
    assert close(structured.convolution(system, x, start)[0], expected)
    assert close(structured.recurrence(system, x, None, start)[0], expected)
    assert not close(structured.convolution(system._replace(write=system.turn), x, start)[0], expected)
    found = structured.exact(system, x, torch.zeros(2, 2, 6, 9))
    assert found is None or close(found[0], expected)


@pytest.mark.parametrize("count", [1, 2, 31])
def test_convolution_is_the_recurrence(count: int) -> None:
    torch.manual_seed(count)
    turn = torch.polar(torch.rand(9, 6) * 0.9 + 0.05, torch.randn(9, 6))
    complexes = [turn, *(torch.randn(9, 6, dtype=torch.complex64) for _ in range(2))]
    inputs = [*complexes, torch.randn(9), torch.randn(2, count, 9), torch.randn(2, 9, 6, dtype=torch.complex64)]

    def run(form: Callable[..., Pair]) -> Callable[..., Pair]:
        return lambda *x: form(structured.System(*x[:4]), x[4], x[5])

    slow = run(lambda system, x, start: structured.recurrence(system, x, None, start))
    assert agree(run(structured.convolution), slow, inputs)
    if count > 1:
        fault = run(lambda system, x, start: structured.convolution(system, x.flip(1), start))
        assert not agree(fault, slow, inputs)


@pytest.mark.parametrize("start", ["lin", "inv"])
def test_s4d_starts_as_its_paper_says(start: str) -> None:
    model = make(model_of(spec.Structured(state=8, start=start)))
    layer = next(m for m in model.modules() if isinstance(m, structured.StructuredSpace))
    n = torch.arange(4.0)
    expected = math.pi * n if start == "lin" else 8 / math.pi * (8 / (2 * n + 1) - 1)
    assert close(layer.frequency[3], expected)
    assert torch.allclose(layer.log_decay.exp(), torch.tensor(0.5))
    assert float(layer.step.detach().exp().min()) >= 1e-4
    assert float(layer.step.detach().exp().max()) <= 0.1


# ------------------------------------------------------------------------------------------------ layers

LAYERS: dict[str, spec.Layer] = {
    "selective": spec.Selective(inner=40, state=5, kernel=3, rank=3, norm=spec.Norm()),
    "dual": spec.StateSpaceDual(heads=6, head_dim=7, groups=2, state=5, kernel=3, norm=spec.Norm()),
    "structured": spec.Structured(state=10),
    "structured, bilinear": spec.Structured(state=10, discretisation="bilinear", gated=False, activation="silu"),
    "delta": spec.GatedDelta(heads=2, value_heads=6, key_dim=5, value_dim=19, kernel=3, norm=spec.Norm()),
}
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))


def model_of(layer: spec.Layer, dim: int = 24) -> spec.Model:
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=spec.Norm()),))
    stack = spec.Stack(dim=dim, blocks=(block,) * 2, final_norm=spec.Norm())
    return spec.Model(embed=spec.Embed(vocab=50, dim=dim), stack=stack, heads=(spec.Language(),))


def module_of(layer: spec.Layer, served: bool) -> Stateful:
    """A layer by itself, random, in its served form if so."""
    model = build(model_of(layer)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    found = next(part for part in model.modules() if isinstance(part, Stateful))
    if served:
        for name, part in list(found.named_children()):
            if isinstance(part, Linear):
                setattr(found, name, RowLinear.of(part.weight, part.bias))
    return found


class Slot(Dense):
    """A dense state that keeps what a recurrent layer gives it."""

    kept: tuple[Tensor, ...] | None = None

    def recur(self, index: int, x: Tensor, run: Recurrence) -> Tensor:  # noqa: ARG002
        out, self.kept = run(x, self.kept, self.segments)
        return out


def run(layer: Stateful, x: Tensor, sizes: Sequence[int], segments: Tensor | None = None) -> Tensor:
    """x [B,T,D] through the layer, some tokens at a time."""
    state = Slot(torch.zeros(x.shape[:2], dtype=torch.int64), None, (), x.shape[1])
    parts, start = [], 0
    for size in sizes:
        state.segments = None if segments is None else segments[:, start : start + size]
        parts.append(layer(x[:, start : start + size], Context(state, ())))
        if state.kept is not None:
            assert tuple(tuple(one.shape[1:]) for one in state.kept) == layer.declare().shapes  # whatever T is
        start += size
    return torch.cat(parts, dim=1)


@torch.no_grad()
@EACH
def test_rows_know_no_cuts_and_no_mates(layer: spec.Layer) -> None:
    if native.library() is None:
        pytest.skip("exact rows need the native scan")
    served, x = module_of(layer, served=True), torch.randn(3, 19, 24)
    whole = run(served, x, [19])
    for sizes in ([1] * 19, [5, 1, 13], [16, 3]):
        assert torch.equal(run(served, x, sizes), whole)
    assert torch.equal(run(served, x[1:2], [19])[0], whole[1])
    assert not torch.equal(run(served, x + 1e-6, [19]), whole)


@EACH
def test_trained_is_served(layer: spec.Layer) -> None:
    """The form that learns gives what the served one does, whole or continued, packed or not."""
    x = torch.randn(3, 19, 24)
    with torch.no_grad():
        whole = run(module_of(layer, served=True), x, [19])
    learns = module_of(layer, served=False)
    for sizes in ([19], [7, 12]):
        assert close(run(learns, x, sizes).detach(), whole)
    segments = torch.tensor([[1] * 7 + [2] * 12, [1] * 15 + [0] * 4, [0] * 3 + [1] * 16])
    packed = run(learns, x, [19], segments).detach()
    cut = [run(learns, part, [part.shape[1]]).detach() for part in (x[:1, :7], x[:1, 7:], x[1:2, :15], x[2:, 3:])]
    assert close(torch.cat([packed[0], packed[1, :15], packed[2, 3:]]), torch.cat(cut, dim=1)[0])
    alone = segments[1:]
    for sizes in ([2, 17], [8, 11]):  # padding leaves the state as it is
        assert close(run(learns, x[1:], sizes, alone).detach()[alone != 0], packed[1:][alone != 0])
    assert not close(run(learns, x, [19]).detach()[0, 7:], packed[0, 7:])  # the seeded fault: no segments


@EACH
def test_every_parameter_starts_and_learns(layer: spec.Layer) -> None:
    model = make(model_of(layer))
    ids = torch.randint(0, 50, (2, 9))
    model(ids, segments=torch.tensor([[1] * 5 + [2] * 4, [1] * 9])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (spec.Structured(state=7), "holds pairs"),
        (spec.StateSpaceDual(heads=6, head_dim=4, groups=4), "`groups` must divide `heads`"),
        (spec.StateSpaceDual(heads=6, head_dim=4, step_least=0.5, step_most=0.1), "step_most"),
        (spec.GatedDelta(heads=4, value_heads=6, key_dim=4, value_dim=4, norm=spec.Norm()), "must divide"),
        (spec.Structured(activation="x"), "Unknown activation 'x'"),
    ],
)
def test_values_that_no_layer_can_be(layer: spec.Layer, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(model_of(layer))


# ------------------------------------------------------------------------------------------------ served


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_a_hybrid_of_states_is_served_as_if_alone(form: str) -> None:
    prompts = prompts_of("states", 4, (40, 3, 12, 33))
    for sampling in (greedy(), drawn()):
        expected = [said(engine_of("states", form=form, prefix_cache=False), [p], sampling)[0] for p in prompts]
        engine = engine_of("states", form=form, tokens=7, rows=3)
        assert said(engine, prompts, sampling) == expected
        assert said(engine, prompts, sampling) == expected
