"""Law 2 and law 3 for paged attention: native == reference == plain attention, and what a query gets is its own.

- The reference equals `mix_reference` on the same keys laid side by side: 1e-5 in fp32; 1e-2 of the largest with bf16
  and int8 pages, for weights are rounded to bf16.
- The native operator equals the reference: 1e-5 of the largest in fp32. With bf16 and int8 pages both round alike and
  differ only where a weight falls on the other side of a tie: 2-norm of the difference at most 2e-4 of the result's.
- Bit for bit the same: alone or beside others, a prompt in one piece or in any pieces, other pages, other threads.
- No number of another sequence, and nothing that stands in unwritten places, reaches a query: not even NaN.
- int8 pages are within 2% (2-norm) of fp32 pages.
Each law has a seeded fault that it must find. Units that this machine does not choose (AMX on arrays, AVX2, plain C++)
are held to the same on fewer cases.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook import hardware
from openbook.errors import InputError
from openbook.native import paged as native
from openbook.nn import paged, paged_reference
from openbook.nn.attend import mix_reference
from openbook.nn.paged import Pages, Walk
from openbook.nn.paged_reference import Rule
from tests.pages import BF16, FP32, INT8, Attend, Case, Step, call, off, slots_of

RULES = [
    Case(),
    Case(page=64, window=40),
    Case(window=1, key_dim=10, value_dim=10),
    Case(softcap=3.0, biased=True),
    Case(sinks=True, window=200, softcap=2.0),
    Case(causal=False, new=(3, 2, 1, 50, 1)),
    Case(causal=False, new=(3, 2, 1, 50, 1), sinks=True),
    Case(input=BF16),
    Case(page=64, chunk=48),
]
DIMS = [
    *(Case(key_dim=dim, value_dim=dim) for dim in (12, 64, 80, 96, 128)),
    Case(key_dim=192, value_dim=128, heads=4),
    Case(key_dim=36, value_dim=20, kv_heads=1, latent=True),
    Case(key_dim=576, value_dim=512, heads=16, kv_heads=1, latent=True, lengths=(70, 33), new=(1, 3)),
]
GROUPS = [Case(heads=heads, kv_heads=1, lengths=(70, 21), new=(1, 21)) for heads in (1, 2, 4, 5, 7, 8, 16, 71)]
CASES = [*RULES, *DIMS, *GROUPS]
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16, INT8], ids=["fp32", "bf16", "int8"])
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{CASES.index(case)}")


def has(feature: str) -> Any:
    return pytest.mark.skipif(feature not in hardware.cpu_features(), reason=f"needs {feature}")


FEW = [RULES[1], RULES[3], RULES[4], RULES[7], RULES[8], DIMS[6], GROUPS[2]]  # for the units elsewhere
UNITS = {"amx": native.EMULATED, "avx512": native.WIDE, "avx2": native.AVX2, "plain": ()}
ELSEWHERE = [
    pytest.param("amx", marks=[pytest.mark.slow, has("AVX-512 BF16")]),
    pytest.param("avx512", marks=[pytest.mark.slow, has("AVX-512")]),
    pytest.param("avx2", marks=[pytest.mark.slow, has("AVX2")]),
    pytest.param("plain", marks=pytest.mark.slow),
]
EVERYWHERE = pytest.mark.parametrize("unit", ["here", "reference", *ELSEWHERE])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def operator(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the unit; skip where it cannot be had."""
    if unit == "reference":
        monkeypatch.setattr(native, "paged", lambda: None)
        return
    found = native.paged() if unit == "here" else native.load([(*UNITS[unit], "-O1")])  # sooner compiled
    if found is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(native, "paged", lambda: found)


# ------------------------------------------------------------------------------------------------ law 2: same numbers


def reference_is_plain(case: Case, dtype: torch.dtype, change: Callable[[Rule], Rule] = lambda rule: rule) -> bool:
    step = Step(case, dtype)
    largest, _ = off(
        paged_reference.attend(step.pages, step.walk, step.q, change(case.rule())), step.plain(case.rule())
    )
    return largest <= (1e-5 if dtype == FP32 and case.input == FP32 else 1e-2)


@DTYPES
@EVERY
def test_the_reference_is_plain_attention(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "paged", lambda: None)
    assert reference_is_plain(case, dtype)


def native_is_reference(case: Case, dtype: torch.dtype, change: Callable[[Rule], Rule] = lambda rule: rule) -> bool:
    step = Step(case, dtype)
    other = Pages(case.layout(dtype), step.pages.count)
    for numbers, (_, k, v) in zip(step.numbers, step.contents, strict=True):
        paged_reference.write(other, k, v, slots_of(numbers, range(len(k)), case.page))
        for mine, its in zip(step.pages.read(numbers, len(k)), other.read(numbers, len(k)), strict=True):
            assert torch.equal(mine, its), "both write the same"
    mine = call(step.pages, step.walk, step.q, change(case.rule()))
    largest, norm = off(mine, paged_reference.attend(step.pages, step.walk, step.q, case.rule()))
    return largest <= 1e-5 if dtype == FP32 and case.input == FP32 else norm <= (2e-4 if case.input == FP32 else 1e-3)


@DTYPES
@EVERY
@pytest.mark.parametrize("unit", ["here"])
@pytest.mark.usefixtures("operator")
def test_native_is_the_reference(case: Case, dtype: torch.dtype) -> None:
    assert native_is_reference(case, dtype)


@DTYPES
@pytest.mark.parametrize("unit", ELSEWHERE)
@pytest.mark.usefixtures("operator")
def test_other_units_are_the_reference(dtype: torch.dtype) -> None:
    for case in FEW:
        assert native_is_reference(case, dtype), case


FAULTS: dict[str, tuple[Case, Callable[[Rule], Rule]]] = {
    "scale 2% off": (RULES[0], lambda rule: rule._replace(scale=rule.scale * 1.02)),
    "a window one too wide": (RULES[1], lambda rule: rule._replace(window=41)),
    "chunks one too long": (RULES[8], lambda rule: rule._replace(chunk=49)),
    "no soft cap": (RULES[3], lambda rule: rule._replace(softcap=None)),
    "the bias one token away": (RULES[3], lambda rule: rule._replace(bias=rule.bias.roll(1, 1))),  # type: ignore[union-attr]
    "sinks of other heads": (RULES[4], lambda rule: rule._replace(sinks=rule.sinks.roll(1))),  # type: ignore[union-attr]
    "everything seen": (RULES[0], lambda rule: rule._replace(causal=False)),
}


@pytest.mark.parametrize("law", [reference_is_plain, native_is_reference])
@pytest.mark.parametrize("fault", FAULTS)
@DTYPES
def test_the_laws_find_faults(law: Callable[..., bool], fault: str, dtype: torch.dtype) -> None:
    case, change = FAULTS[fault]
    assert law(case, dtype)
    assert not law(case, dtype, change)


# ------------------------------------------------------------------------------------------------ law 3: each its own

Cuts = Sequence[int]
LONG = 600


def stream(
    case: Case, dtype: torch.dtype, cuts: Cuts, mates: int = 0, pages_seed: int = 1, mixer: Attend | None = None
) -> Tensor:
    """One sequence of LONG tokens in steps of `cuts`, beside `mates` others of growing lengths: what its tokens get."""
    torch.manual_seed(3)
    q, k, v = case.tokens(LONG)
    torch.manual_seed(pages_seed)
    each = -(-LONG // case.page)
    pages = Pages(case.layout(dtype), (mates + 1) * each + 1)
    pages.data.fill_(0xFF)
    table = (torch.randperm((mates + 1) * each) + 1).int().view(mates + 1, each)
    place = mates // 2  # of ours among them
    others = [case.tokens(LONG) for _ in range(mates + 1)]
    others[place] = (q, k, v)
    numbers = table.tolist()
    got, at, rule = [], 0, case.rule()
    for cut in (*cuts, LONG):
        count = min(cut, LONG - at)
        if not count:
            break
        spans = [(0, 7 + i) if at == 0 else (at, min(at + 1 + 3 * i, LONG)) for i in range(mates + 1)]
        spans[place] = (at, at + count)
        parts = [[x[a:b] for x in own] for own, (a, b) in zip(others, spans, strict=True)]
        packed = [torch.cat(x) for x in zip(*parts, strict=True)]
        starts = torch.tensor([0, *itertools.accumulate(b - a for a, b in spans)], dtype=torch.int32)
        slots = torch.cat([slots_of(mine, range(*span), case.page) for mine, span in zip(numbers, spans, strict=True)])
        lengths = torch.tensor([b for _, b in spans], dtype=torch.int32)
        walk = Walk(table=table, starts=starts, lengths=lengths, slots=slots)
        if mixer is None:
            out = paged.write_and_attend(pages, walk, *packed, **rule._asdict())  # type: ignore[arg-type]
        else:
            paged.write(pages, *packed[1:], slots)
            out = mixer(pages, walk, packed[0], rule)
        got.append(out[starts[place] : starts[place + 1]])
        at += count
    return torch.cat(got)


def each_its_own(case: Case, dtype: torch.dtype, mixer: Attend | None = None) -> bool:
    whole = stream(case, dtype, (), mixer=mixer)
    ways = [
        stream(case, dtype, (), mates=3, pages_seed=7, mixer=mixer),
        stream(case, dtype, (1, 5, 32, 33, 64, 3, 127, 128), mixer=mixer),
        stream(case, dtype, (590, *[1] * 10), mates=2, pages_seed=9, mixer=mixer),
        stream(case, dtype, (32, 500, *[1] * 9), mates=5, mixer=mixer),
    ]
    with_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ways.append(stream(case, dtype, (17, 500, *[1] * 9), mates=1, mixer=mixer))
        torch.set_num_threads(3)
        ways.append(stream(case, dtype, (17, 500, *[1] * 9), mixer=mixer))  # one long sequence: in chunks
    finally:
        torch.set_num_threads(with_threads)
    return all(torch.equal(whole, way) for way in ways)


OWN = [
    Case(),
    Case(page=64, window=100, heads=9, kv_heads=3, key_dim=64, value_dim=64),
    Case(softcap=4.0, biased=True, sinks=True, key_dim=48, value_dim=48, heads=6, kv_heads=6),
    Case(key_dim=36, value_dim=20, heads=16, kv_heads=1, latent=True, input=BF16),
    Case(heads=71, kv_heads=1, key_dim=64, value_dim=64, input=BF16),
]


@DTYPES
@pytest.mark.parametrize("case", OWN, ids=lambda case: f"{OWN.index(case)}")
@pytest.mark.parametrize("unit", ["here"])
@pytest.mark.usefixtures("operator")
def test_each_gets_its_own_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    assert each_its_own(case, dtype)


@DTYPES
@pytest.mark.parametrize("unit", ELSEWHERE)
@pytest.mark.usefixtures("operator")
def test_each_gets_its_own_elsewhere(dtype: torch.dtype) -> None:
    assert each_its_own(OWN[1], dtype)


def test_the_law_finds_one_softmax_for_all() -> None:
    """Seeded fault: plain attention over whatever lies in the step."""

    def gathered(pages: Pages, walk: Walk, q: Tensor, rule: Rule) -> Tensor:
        out = []
        for i, length in enumerate(walk.lengths.tolist()):
            rows = q[walk.starts[i] : walk.starts[i + 1]]
            k, v = pages.read(walk.table[i].tolist(), length)
            hidden = torch.ones(len(rows), length, dtype=torch.bool).tril(length - len(rows)).logical_not()
            bias = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
            out.append(mix_reference(rows[None], k[None], v[None], None, False, rule.scale, bias=bias[None, None])[0])
        return torch.cat(out)

    assert not each_its_own(OWN[0], FP32, gathered)


# ------------------------------------------------------------------------------------------------ nothing from others


def neighbours_are_apart(dtype: torch.dtype, longer: int = 0) -> bool:
    """A poisoned sequence beside healthy ones, and NaN in all that is unwritten: only its own rows are NaN."""
    case = Case(lengths=(70, 45, 33), new=(3, 45, 1), page=64)
    step = Step(case, dtype)
    rule = case.rule()
    clean = call(step.pages, step.walk, step.q, rule)
    _, k, v = step.contents[1]
    k = k.clone()
    k[20] = float("nan")
    paged.write(step.pages, k, v, slots_of(step.numbers[1], range(45), 64))
    walk = replace(step.walk, lengths=step.walk.lengths + longer)
    got = call(step.pages, walk, step.q, rule)
    mates = torch.cat([got[:3], got[48:]]), torch.cat([clean[:3], clean[48:]])
    before, after = got[3:23], got[23:48]
    return torch.equal(*mates) and torch.equal(before, clean[3:23]) and bool(after.isnan().all())


@DTYPES
@EVERYWHERE
@pytest.mark.usefixtures("operator")
def test_nan_stays_with_its_own(dtype: torch.dtype) -> None:
    assert neighbours_are_apart(dtype)


@DTYPES
def test_the_law_finds_a_length_too_long(dtype: torch.dtype) -> None:
    assert not neighbours_are_apart(dtype, longer=1)


# ------------------------------------------------------------------------------------------------ int8, pages, memory


def int8_is_close(spoil: Callable[[Pages], None] | None = None) -> float:
    case = Case(key_dim=64, value_dim=64)
    exact, small = Step(case, FP32), Step(case, INT8)
    for numbers, (_, k, v) in zip(small.numbers, exact.contents, strict=True):
        paged.write(small.pages, k, v, slots_of(numbers, range(len(k)), case.page))
    if spoil is not None:
        spoil(small.pages)
    rule = case.rule()
    return off(call(small.pages, small.walk, exact.q, rule), call(exact.pages, exact.walk, exact.q, rule))[1]


def test_int8_pages_are_close() -> None:
    assert int8_is_close() < 0.02


def test_the_law_finds_scales_of_another_token() -> None:
    def spoil(pages: Pages) -> None:
        assert pages.scales is not None
        pages.scales.copy_(pages.scales.roll(1, -1).nan_to_num(1.0))

    assert int8_is_close(spoil) > 0.02


@DTYPES
def test_pages_are_copied_whole(dtype: torch.dtype) -> None:
    case = Case(page=64)
    pages = Pages(case.layout(dtype), 6)
    _, k, v = case.tokens(70)
    paged.write(pages, k, v, slots_of([3, 1], range(70), 64))
    before = [x.clone() for x in pages.read([3, 1], 70)]
    pages.copy([3, 1], [5, 2])
    paged.write(pages, k * 0, v * 0, slots_of([3, 1], range(70), 64))
    for mine, its in zip(pages.read([5, 2], 70), before, strict=True):
        assert torch.equal(mine, its)
    assert pages.data.nbytes == 6 * case.layout(dtype).nbytes


@DTYPES
@pytest.mark.parametrize("unit", ["here", "reference"])
@pytest.mark.usefixtures("operator")
def test_parts_of_one_matrix_are_taken_as_they_lie(dtype: torch.dtype) -> None:
    joint = torch.randn(40, 6 + 2 + 2, 64)
    parts = joint.split([6, 2, 2], dim=1)
    case = Case(key_dim=64, value_dim=64)
    slots = slots_of([2, 1], range(40), 32)
    tables = {"table": torch.tensor([[2, 1]]), "starts": torch.tensor([0, 40]), "lengths": torch.tensor([40])}
    walk = Walk(**{name: x.int() for name, x in tables.items()}, slots=slots)
    mixed = []
    for q, k, v in (parts, [part.contiguous() for part in parts]):
        mixed.append(paged.write_and_attend(Pages(case.layout(dtype), 3), walk, q, k, v, **case.rule()._asdict()))  # type: ignore[arg-type]
    assert torch.equal(*mixed)


def test_a_layout_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="page=48"):
        Case(page=48).layout(BF16)
    with pytest.raises(InputError, match="float16"):
        Case().layout(torch.float16)
    with pytest.raises(InputError, match="prefix"):
        Case(latent=True).layout(BF16)


PROGRAM = """
import torch
from openbook.nn.paged import Layout, Pages, Walk, write_and_attend
pages = Pages(Layout(kv_heads=1, key_dim=8, value_dim=8), 2)
walk = Walk(table=torch.tensor([[1]]).int(), starts=torch.tensor([0, 2]).int(), lengths=torch.tensor([2]).int(),
            slots=torch.tensor([32, 33]).int())
x = torch.ones(2, 1, 8)
print(write_and_attend(pages, walk, x, x, x, causal=True, window=None, scale=1.0).sum().item())
"""


@pytest.mark.slow
def test_without_a_compiler_the_reference_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "OPENBOOK_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["16.0"]
