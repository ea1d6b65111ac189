"""Law 2 and law 3 for paged attention: native == reference == plain attention, and what a query gets is its own.

- The reference equals `mix_reference` on the same keys, laid side by side: 1e-5 in fp32; with bf16 and int8 pages 1e-2 of the
  largest, for weights are rounded to bf16.
- The native operator equals the reference: 1e-5 of the largest in fp32. With bf16 and int8 pages both round alike, and
  differ only where a weight falls on the other side of a tie: 2-norm of the difference at most 2e-4 of that of the result.
- Bit for bit the same: alone or beside others, a prompt in one piece or in any pieces, other pages, other threads.
- No number of another sequence, and nothing that stands in unwritten places, reaches a query: not even NaN.
- int8 pages are within 2% (2-norm) of fp32 pages.
Each law has a seeded fault that it must find. Units that this machine does not choose (AMX on arrays, AVX2, plain C++) are
held to the same.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook import hardware
from openbook.errors import InputError
from openbook.native import paged as native
from openbook.nn import paged, paged_reference
from openbook.nn.attend import mix_reference
from openbook.nn.paged import Layout, Pages, Walk
from openbook.nn.paged_reference import Rule

FP32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
Attend = Callable[[Pages, Walk, Tensor, Rule], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes and rule of one comparison; `new` of the `lengths` tokens of each sequence are queries."""

    lengths: tuple[int, ...] = (1, 33, 40, 600, 0)
    new: tuple[int, ...] = (1, 5, 40, 1, 0)
    heads: int = 6
    kv_heads: int = 2
    key_dim: int = 20
    value_dim: int = 12
    latent: bool = False
    page: int = 32
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    biased: bool = False
    sinks: bool = False
    input: torch.dtype = FP32

    def rule(self) -> Rule:
        """The same bias and sinks each time."""
        made = torch.Generator().manual_seed(5)
        bias = torch.randn(self.heads, 700, generator=made) if self.biased else None
        sinks = torch.randn(self.heads, generator=made) if self.sinks else None
        return Rule(self.causal, self.window, self.key_dim**-0.5, self.softcap, bias, sinks)

    def layout(self, dtype: torch.dtype) -> Layout:
        """Pages of `dtype` for it."""
        sizes = {"kv_heads": self.kv_heads, "key_dim": self.key_dim, "value_dim": self.value_dim}
        return Layout(**sizes, page=self.page, dtype=dtype, latent=self.latent)  # type: ignore[arg-type]

    def tokens(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v of so many tokens."""
        q = torch.randn(count, self.heads, self.key_dim)
        k = torch.randn(count, self.kv_heads, self.key_dim)
        v = k[..., : self.value_dim] if self.latent else torch.randn(count, self.kv_heads, self.value_dim)
        return q.to(self.input), k.to(self.input), v.to(self.input)


class Step:
    """Sequences in pages of random numbers, all else in the pages NaN, and the queries of their last tokens."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        page = case.page
        need = [-(-length // page) for length in case.lengths]
        self.case = case
        self.pages = Pages(case.layout(dtype), sum(need) + 2)
        self.pages.data.fill_(0xFF)
        free = iter((torch.randperm(sum(need)) + 1).tolist())
        self.numbers = [list(itertools.islice(free, count)) for count in need]
        self.contents = [case.tokens(length) for length in case.lengths]
        table = torch.zeros(len(need), max(need) + 1, dtype=torch.int32)
        for i, numbers in enumerate(self.numbers):
            table[i, : len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
            slots = slots_of(numbers, range(case.lengths[i]), page)
            paged.write(self.pages, *self.contents[i][1:], slots)
        starts = torch.tensor([0, *itertools.accumulate(case.new)], dtype=torch.int32)
        nowhere = torch.full((int(starts[-1]) + 2,), -1, dtype=torch.int32)
        self.walk = Walk(
            table=table, starts=starts, lengths=torch.tensor(case.lengths, dtype=torch.int32), slots=nowhere
        )
        self.q = case.tokens(sum(case.new) + 2)[0]  # two rows of no sequence

    def plain(self, rule: Rule) -> Tensor:
        """What `mix_reference` says of what the pages hold."""
        case = self.case
        out = torch.zeros(len(self.q), case.heads, case.value_dim)
        for i, (length, count) in enumerate(zip(case.lengths, case.new, strict=True)):
            k, v = self.pages.read(self.numbers[i], length)
            first = int(self.walk.starts[i])
            distance = torch.arange(length - count, length).unsqueeze(1) - torch.arange(length)
            bias = torch.zeros(case.heads, count, length)
            if rule.bias is not None:
                bias = rule.bias[:, distance.clamp(min=0)]
            if rule.causal:
                bias = bias.masked_fill((distance < 0) | (distance >= (rule.window or 10**9)), float("-inf"))
            if rule.sinks is not None:  # a key of zeros without a value
                k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
                bias = torch.cat([bias, rule.sinks.view(-1, 1, 1).expand(-1, count, 1)], dim=2)
            if count and len(k):
                q = self.q[first : first + count].to(torch.float32 if self.pages.layout.dtype == FP32 else BF16).float()
                mixed = mix_reference(q[None], k[None], v[None], None, False, rule.scale, rule.softcap, 0.0, bias[None])
                out[first : first + count] = mixed[0]
        return out


def slots_of(numbers: Sequence[int], tokens: Sequence[int], page: int) -> Tensor:
    """Where tokens of a sequence in these pages stand."""
    return torch.tensor([numbers[t // page] * page + t % page for t in tokens], dtype=torch.int32)


def call(pages: Pages, walk: Walk, q: Tensor, rule: Rule) -> Tensor:
    """The public face."""
    return paged.attend(pages, walk, q, **rule._asdict())


def off(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Largest difference by the largest of y (at least 1), and 2-norm of the difference by that of y; NaN is infinite."""
    x, y = x.float(), y.float()
    wrong = (x - y).nan_to_num(float("inf"))
    largest = wrong.abs().max() / y.abs().max().clamp(min=1)
    return float(largest), float(wrong.norm() / y.norm().clamp(min=1e-20))


RULES = [
    Case(),
    Case(page=64, window=40),
    Case(window=1, key_dim=10, value_dim=10),
    Case(softcap=3.0, biased=True),
    Case(sinks=True, window=200, softcap=2.0),
    Case(causal=False, new=(3, 2, 1, 50, 1)),
    Case(causal=False, new=(3, 2, 1, 50, 1), sinks=True),
    Case(input=BF16),
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


UNITS = {"amx": native.EMULATED, "avx2": native.AVX2, "plain": ()}
ELSEWHERE = [
    pytest.param("amx", marks=[pytest.mark.slow, has("AVX-512 BF16")]),
    pytest.param("avx2", marks=[pytest.mark.slow, has("AVX2")]),
    pytest.param("plain", marks=pytest.mark.slow),
]
OPERATORS = pytest.mark.parametrize("unit", ["here", *ELSEWHERE])
ALL_BUT_HERE = pytest.mark.parametrize("unit", ["here", "reference", *ELSEWHERE])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def operator(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the unit; skip where it cannot be had."""
    if unit == "reference":
        monkeypatch.setattr(native, "paged", lambda: None)
        return
    found = native.paged() if unit == "here" else native.load([UNITS[unit]])
    if found is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(native, "paged", lambda: found)


# ------------------------------------------------------------------------------------------------ law 2: the same numbers


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
@OPERATORS
@pytest.mark.usefixtures("operator")
def test_native_is_the_reference(case: Case, dtype: torch.dtype) -> None:
    assert native_is_reference(case, dtype)


FAULTS: dict[str, tuple[Case, Callable[[Rule], Rule]]] = {
    "scale 2% off": (RULES[0], lambda rule: rule._replace(scale=rule.scale * 1.02)),
    "a window one too wide": (RULES[1], lambda rule: rule._replace(window=41)),
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
@OPERATORS
@pytest.mark.usefixtures("operator")
def test_each_gets_its_own_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    assert each_its_own(case, dtype)


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
@ALL_BUT_HERE
@pytest.mark.usefixtures("operator")
def test_nan_stays_with_its_own(dtype: torch.dtype) -> None:
    assert neighbours_are_apart(dtype)


@DTYPES
def test_the_law_finds_a_length_too_long(dtype: torch.dtype) -> None:
    assert not neighbours_are_apart(dtype, longer=1)


# ------------------------------------------------------------------------------------------------ int8, pages, memory


def int8_is_close(spoil: Callable[[Pages], None] = lambda pages: None) -> float:
    case = Case(key_dim=64, value_dim=64)
    exact, small = Step(case, FP32), Step(case, INT8)
    for numbers, (_, k, v) in zip(small.numbers, exact.contents, strict=True):
        paged.write(small.pages, k, v, slots_of(numbers, range(len(k)), case.page))
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
