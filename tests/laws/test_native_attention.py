"""Law 2 for native attention: `flash` == `mix_reference`, outputs and gradients, with AMX and with AVX-512 BF16.

Both round to bf16, so neither is exact. What is compared is the distance to the reference in double precision, relative
in the 2-norm: that of `flash` may be at most 1.5 times that of PyTorch's own bf16 operator on the same numbers, plus
1e-5 where that is exact. Beside it, bit for bit: rows do not depend on their neighbours, nor on the number of threads.
Seeded faults: a triangle one too wide, a window one too wide, segments that leak, a scale 2% off, gradients swapped.

Without a C++ compiler or AVX-512 BF16 the native half is skipped; that everything then runs through PyTorch is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from openbook import log
from openbook.native import attention as native
from openbook.native import build
from openbook.nn import attend, flash
from openbook.nn.attend import mix, mix_reference
from openbook.nn.spec import Pattern
from openbook.nn.state import Dense

Mixer = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes and pattern of one comparison; `documents`: segments with padding."""

    rows: int = 2
    tokens: int = 100
    heads: int = 4
    kv_heads: int = 2
    dim: int = 48
    value_dim: int | None = None
    keys: int | None = None
    causal: bool = True
    window: int | None = None
    documents: bool = False

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the gradient of the output."""
        keys, value = self.keys or self.tokens, self.value_dim or self.dim
        sizes = ((self.tokens, self.heads, self.dim), (keys, self.kv_heads, self.dim), (keys, self.kv_heads, value))
        q, k, v = (torch.randn(self.rows, *size).bfloat16() for size in sizes)
        return q, k, v, torch.randn(self.rows, self.tokens, self.heads, value).bfloat16()

    def segments(self) -> Tensor | None:
        """[B,T]: another cut in each row, numbers that come back, padding at the end."""
        if not self.documents:
            return None
        place = torch.arange(self.tokens)
        lines = [(place // (self.tokens // 3 + row)) % 2 + 1 for row in range(self.rows)]
        found = torch.stack(lines)
        found[:, self.tokens * 4 // 5 :] = 0
        return found

    def seen(self) -> Tensor:
        """[B or 1,1,T,S]: what `flash` promises, said another way."""
        order = torch.arange(self.tokens).unsqueeze(1) - torch.arange(self.keys or self.tokens)
        seen = (order >= 0) | torch.tensor(not self.causal)
        if self.window:
            seen &= order.abs() < self.window
        segments = self.segments()
        if segments is None:
            return seen[None, None]
        same = (segments.unsqueeze(2) == segments.unsqueeze(1)) & (segments != 0).unsqueeze(1)
        return ((seen & same) | torch.eye(self.tokens, dtype=torch.bool)).unsqueeze(1)

    def flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What is held to the law."""
        scale = self.dim**-0.5
        return flash.flash(q, k, v, causal=self.causal, scale=scale, window=self.window, segments=self.segments())


LENGTHS = [Case(tokens=tokens, heads=2) for tokens in (1, 7, 33, 511, 512, 513)]
SIZES = [Case(dim=dim) for dim in (2, 10, 16, 20, 48, 64, 80, 128, 256)]
HEADS = [Case(heads=heads, kv_heads=kv_heads, dim=20) for heads, kv_heads in ((1, 1), (6, 1), (6, 6), (9, 3))]
PATTERNS = [
    Case(causal=False),
    Case(tokens=300, window=50),
    Case(tokens=300, window=1),
    Case(tokens=300, window=45, causal=False),
    Case(tokens=300, documents=True),
    Case(tokens=300, documents=True, causal=False),
    Case(tokens=300, documents=True, window=20),
    Case(tokens=333, documents=True, window=33, causal=False),
    Case(keys=77, causal=False),
    Case(keys=77),
    Case(keys=177),
    Case(dim=64, value_dim=40),
]


@pytest.fixture
def operator() -> native.Attention:
    """The operator, or a skip where this machine has none."""
    found = native.attention()
    if found is None:
        pytest.skip("no native attention here: it needs AVX-512 BF16 or AMX, Linux, and a C++ compiler")
    return found


@pytest.fixture(params=["amx", "avx512"])
def unit(request: pytest.FixtureRequest, operator: native.Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unit that this processor has."""
    if request.param == "amx" and operator.unit != 2:
        pytest.skip("this processor has no AMX")
    monkeypatch.setattr(operator, "unit", 2 if request.param == "amx" else 1)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def outcome(mixer: Mixer, *tensors: Tensor) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    *inputs, grad = tensors
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = mixer(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def hold(case: Case, mixer: Mixer | None = None) -> None:
    """The law, for one case."""
    *inputs, grad = case.tensors()
    seen, scale = case.seen(), case.dim**-0.5

    def peer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        even = pad(v, (0, case.dim - v.shape[3]))  # else it takes its slow and more exact way
        parts = (x.transpose(1, 2) for x in (q, k, even))
        mixed = scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=True)
        return mixed.transpose(1, 2)[..., : v.shape[3]]

    exact = outcome(lambda q, k, v: mix_reference(q, k, v, seen, False, scale), *(x.double() for x in inputs), grad)
    ours, theirs = outcome(mixer or case.flash, *inputs, grad), outcome(peer, *inputs, grad)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, strict=True):
        # A single token has no gradient in q and k: what is left where two sums cancel is as small as their rounding,
        # and is measured by the size of what cancels (AMD's units leave some, Intel's happen to leave none).
        size = c.norm().clamp(min=0.1 * float(grad.norm()))
        mine, limit = (a.double() - c).norm() / size, 1.5 * (b.double() - c).norm() / size + 1e-5
        assert mine <= limit, f"{case}: {name} is {mine:.2e} off, at most {limit:.2e} is allowed"


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("case", [*LENGTHS, *SIZES, *HEADS, *PATTERNS], ids=str)
def test_flash_equals_the_reference(case: Case) -> None:
    hold(case)


def faulty(**change: object) -> Callable[[Case], Mixer]:
    """`flash` with something else than what the case says."""

    def mixer(case: Case) -> Mixer:
        said = {"causal": case.causal, "scale": case.dim**-0.5, "window": case.window, "segments": case.segments()}
        return lambda q, k, v: flash.flash(q, k, v, **{**said, **change})  # type: ignore[arg-type]

    return mixer


def later(case: Case) -> Mixer:
    """Queries see one key too many."""
    del case
    scale = 48**-0.5
    return lambda q, k, v: flash.flash(q, k.roll(-1, 1), v.roll(-1, 1), causal=True, scale=scale)


def swapped(case: Case) -> Mixer:
    """The gradients of k and v change places."""

    def mixer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return case.flash(q, k + (v - v.detach()), v.detach() + (k - k.detach()))

    return mixer


FAULTS = {
    "a triangle one too wide": (Case(), later),
    "no triangle": (Case(), faulty(causal=False)),
    "a window one too wide": (Case(window=10), faulty(window=11)),
    "segments that leak": (Case(documents=True), faulty(segments=torch.ones(2, 100, dtype=torch.int64))),
    "a scale 2% off": (Case(), faulty(scale=1.02 * 48**-0.5)),
    "gradients swapped": (Case(), swapped),
}


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault: str) -> None:
    case, mixer = FAULTS[fault]
    with pytest.raises(AssertionError, match="is allowed"):
        hold(case, mixer(case))


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("case", [Case(rows=5, tokens=150, heads=6, kv_heads=3), Case(rows=5, documents=True)], ids=str)
def test_rows_and_threads_change_no_bit(case: Case, threads: Callable[[int], None]) -> None:
    tensors, segments, scale = case.tensors(), case.segments(), case.dim**-0.5

    def run(rows: slice) -> list[Tensor]:
        part = None if segments is None else segments[rows]
        mixer = lambda q, k, v: flash.flash(q, k, v, causal=True, scale=scale, segments=part)  # noqa: E731
        return outcome(mixer, *(x[rows] for x in tensors))

    threads(1)
    whole = run(slice(None))
    threads(3)
    assert all(map(torch.equal, whole, run(slice(None))))
    for row in range(case.rows):
        alone = run(slice(row, row + 1))
        assert all(torch.equal(x[row : row + 1], y) for x, y in zip(whole, alone, strict=True))


@pytest.mark.usefixtures("unit")
def test_any_strides_and_alignment() -> None:
    case = Case(heads=2, kv_heads=2)
    q, k, v, grad = case.tensors()
    plain = outcome(case.flash, q, k, v, grad)
    joint = torch.cat([x.flatten(2) for x in (q, k, v)], dim=2)  # one row holds q, k and v, as a fused projection does
    shifted = torch.empty(joint.numel() + 1, dtype=torch.bfloat16)[1:].view_as(joint).copy_(joint)
    for held in (joint, shifted):
        leaf = held.detach().requires_grad_()
        out = case.flash(*(part.unflatten(2, (2, 48)) for part in leaf.chunk(3, dim=2)))
        out.backward(grad.transpose(2, 3).contiguous().transpose(2, 3))  # a gradient with its last dimension far apart
        assert torch.equal(out, plain[0])
        assert torch.equal(leaf.grad, torch.cat([x.flatten(2) for x in plain[1:]], dim=2))
    leaf = q.detach().requires_grad_()
    case.flash(leaf, k, v).sum().backward()  # a gradient of stride 0
    assert torch.equal(leaf.grad, outcome(case.flash, q, k, v, torch.ones_like(grad))[1])


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("rows", "tokens", "keys"), [(0, 20, 20), (2, 0, 0), (2, 0, 20), (2, 20, 0)])
def test_nothing_is_no_trouble(rows: int, tokens: int, keys: int) -> None:
    q = torch.randn(rows, tokens, 2, 16).bfloat16()
    k = torch.randn(rows, keys, 2, 16).bfloat16()
    for part in outcome(lambda q, k, v: flash.flash(q, k, v, causal=True, scale=0.25), q, k, k, q):
        assert not part.count_nonzero()


@pytest.mark.usefixtures("operator")
def test_checkpointed_equals_plain() -> None:
    case = Case()
    tensors = case.tensors()
    again = outcome(lambda *x: checkpoint(case.flash, *x, use_reentrant=False), *tensors)
    assert all(map(torch.equal, outcome(case.flash, *tensors), again))


@pytest.mark.usefixtures("operator")
def test_the_operator_tells_the_truth_to_the_compiler() -> None:
    q, k, v, _ = Case(rows=1, tokens=40, dim=16).tensors()
    arguments = (*(x.requires_grad_() for x in (q, k, v)), None, True, 0, 0.25)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.openbook.attention.default, arguments, test_utils=checks)
    traced = torch.compile(lambda q, k, v: mix(q, k, v, None, True, 0.25) * 2, backend="aot_eager", fullgraph=True)
    for one, other in zip(traced(q, k, v), mix(q, k, v, None, True, 0.25) * 2, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("operator")
def test_memory_does_not_grow() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    case = Case(rows=2, tokens=256)
    tensors = case.tensors()
    for _ in range(20):
        outcome(case.flash, *tensors)
    before = resident()
    for _ in range(200):
        outcome(case.flash, *tensors)
    assert resident() - before < 16 << 20


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("documents", [True, False])
def test_dense_attends_alike_with_and_without(
    causal: bool, window: int | None, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tokens=64, causal=causal, window=window, documents=documents)
    *inputs, grad = case.tensors()
    pattern = Pattern(causal=causal, window=window)
    state = Dense(torch.arange(64).expand(2, 64), case.segments(), (pattern,), 64)
    scores = attend_scores(pattern)
    taken = spy(monkeypatch)
    fast = outcome(lambda q, k, v: state.attend(0, q, k, v, scores), *inputs, grad)
    assert bool(taken) == (native.attention() is not None)
    monkeypatch.setattr(attend, "suits", lambda *_: False)
    slow = outcome(lambda q, k, v: state.attend(0, q, k, v, scores), *inputs, grad)
    for a, b in zip(fast, slow, strict=True):
        assert (a - b).float().norm() <= 2**-6 * b.float().norm()  # two operators, each within 2^-7


def attend_scores(pattern: Pattern, **more: float) -> object:
    from openbook.nn.state import Scores

    return Scores(pattern=pattern, mask=0, scale=48**-0.5, **more)  # type: ignore[arg-type]


def spy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever `mix` takes `flash`."""
    taken: list[int] = []
    real = attend.flash

    def noted(*tensors: Tensor, **said: object) -> Tensor:
        taken.append(1)
        return real(*tensors, **said)  # type: ignore[arg-type]

    monkeypatch.setattr(attend, "flash", noted)
    return taken


def test_what_flash_cannot_say_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = spy(monkeypatch)
    q, k, v, _ = Case().tensors()
    mix(q.float(), k.float(), v.float(), None, True, 0.1)
    mix(q, k, v, None, True, 0.1, softcap=30.0)
    mix(q, k, v, None, True, 0.1, dropout=0.5)
    mix(q, k, v, None, True, 0.1, bias=torch.zeros(1, 4, 100, 100))
    mix(q, k, v, torch.ones(1, 1, 100, 100, dtype=torch.bool), False, 0.1)
    mix(q[:, :5], k, v, None, False, 0.1)
    assert not taken


def test_without_amx_it_is_for_training(operator: native.Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "unit", 1)
    taken = spy(monkeypatch)
    q, k, v, _ = Case().tensors()
    mix(q, k, v, None, True, 0.1)
    assert not taken
    mix(q.requires_grad_(), k, v, None, True, 0.1)
    assert taken


# ------------------------------------------------------------------------------------------------ having it or not


@pytest.fixture
def fresh() -> Iterator[None]:
    """The operator is looked for anew, in the test and after it."""
    native.attention.cache_clear()
    yield
    native.attention.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENBOOK_NATIVE", "0")
    q, k, v, _ = Case().tensors()
    assert not flash.suits(q, k, v, 0.1)
    assert mix(q, k, v, None, True, 0.1).shape == q.shape
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("lack", ["compiler", "processor", "flags"])
def test_what_is_lacking_is_said_once(
    lack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENBOOK_NATIVE", "1")
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(native, "cpu_features", lambda: () if lack == "processor" else ("AVX-512 BF16",))
    if lack == "compiler":
        monkeypatch.setattr(build, "find_compiler", lambda: (None, "none"))
    if lack == "flags":
        monkeypatch.setattr(native, "AVX512", ("--no-such-flag",))
    for _ in range(2):
        assert native.attention() is None
        native.attention.cache_clear()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("uncompiled" if lack == "compiler" else "PyTorch") in said


@pytest.mark.slow
def test_processes_may_build_it_at_once(operator: native.Attention, tmp_path: Path) -> None:
    del operator
    program = "from openbook.native.attention import attention; print(attention().unit)"
    environment = {**os.environ, "OPENBOOK_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert all(run.communicate(timeout=120)[0].strip() in ("1", "2") for run in runs)
    (kept,) = (tmp_path / "native").iterdir()
    kept.write_bytes(b"damaged")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() in ("1", "2")
    assert kept.stat().st_size > 1000
