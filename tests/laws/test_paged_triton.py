"""Law 2 for paged attention on a GPU: Triton's kernels, in its interpreter, write and mix what the reference does.

Skipped where Triton is not installed. Seeded fault: a window one too wide.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
os.environ.setdefault("TRITON_INTERPRET", "1")

from openbook.native import paged as native
from openbook.nn import paged_reference, paged_triton
from openbook.nn.paged_reference import Rule
from openbook.nn.pages import Pages
from tests.pages import BF16, FP32, INT8, Case, Step, off, slots_of

pytestmark = pytest.mark.slow
ULP = 2.0**-7  # of bf16: the interpreter cuts numbers off where a GPU rounds them
SMALL = {"lengths": (1, 33, 70, 0), "new": (1, 5, 1, 0)}
CASES = [
    Case(**SMALL),
    Case(**SMALL, page=64, window=40, softcap=3.0, biased=True, sinks=True),
    Case(lengths=(40, 3), new=(2, 3), causal=False, key_dim=64, value_dim=48, heads=9, kv_heads=3, input=BF16),
    Case(**SMALL, chunk=24),
    Case(**SMALL, key_dim=36, value_dim=20, kv_heads=1, latent=True),
]


def same(case: Case, dtype: torch.dtype, window: int | None) -> bool:
    step = Step(case, dtype)
    other = Pages(case.layout(dtype), step.pages.count)
    other.data.fill_(0xFF)
    for numbers, (_, k, v) in zip(step.numbers, step.contents, strict=True):
        paged_triton.write(other, k, v, slots_of(numbers, range(len(k)), case.page))
        for mine, its in zip(other.read(numbers, len(k)), step.pages.read(numbers, len(k)), strict=True):
            worst = ((mine - its).abs() - its.abs() * ULP).max() if len(k) else 0.0
            assert worst <= (0 if dtype == BF16 else 1e-6), "both write the same"
    rule: Rule = case.rule()
    mine = paged_triton.attend(other, step.walk, step.q, rule._replace(window=window))
    _, norm = off(mine, paged_reference.attend(step.pages, step.walk, step.q, rule))
    return norm <= (1e-5 if dtype == FP32 and case.input == FP32 else 1e-2)


@pytest.mark.parametrize("dtype", [FP32, BF16, INT8], ids=["fp32", "bf16", "int8"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{CASES.index(case)}")
def test_triton_is_the_reference(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(native, "paged", lambda: None)
    assert same(case, dtype, case.window)


def test_the_law_finds_a_window_one_too_wide() -> None:
    torch.manual_seed(0)
    assert not same(CASES[1], FP32, 41)
