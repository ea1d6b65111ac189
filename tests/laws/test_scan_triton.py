"""Law 2 for the selective scan on a GPU: Triton's kernels, in its interpreter, are the recurrence, gradients too.

Skipped where Triton is not installed. Seeded faults: padding that counts as a token, a state before that is forgotten.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
os.environ.setdefault("TRITON_INTERPRET", "1")

from openbook.nn import scan, scan_triton
from tests.laws.test_states import close, marks_of, selective_case

pytestmark = pytest.mark.slow
SHAPES = [(19, 5, 1, 3, 3), (18, 6, 2, 2, 1), (3, 5, 1, 4, 4)]


def expected(inputs: list[Tensor], mark: Tensor | None, to_y: Tensor, to_last: Tensor) -> list[Tensor]:
    """The definition's outputs and gradients, in the order of the inputs."""
    own = [one.clone().requires_grad_() for one in inputs]
    y, last = scan.selective_reference(*own[:6], mark, own[6], states=scan.scan_reference)
    gradients = torch.autograd.grad((y, last), own, (to_y, to_last))
    return [y.detach(), last.detach(), *gradients]


def found(inputs: list[Tensor], mark: Tensor | None, to_y: Tensor, to_last: Tensor) -> list[Tensor]:
    y, last, borders = scan_triton.forward(*inputs[:6], mark, inputs[6])
    return [y, last, *scan_triton.backward(*inputs[:6], mark, borders, to_y, to_last)]


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "segments"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_is_the_recurrence(shape: tuple[int, ...], marked: bool) -> None:
    inputs = selective_case(*shape)
    mark = marks_of(2, shape[0]) if marked and shape[0] > 4 else None
    to_y, to_last = torch.randn_like(inputs[0]), torch.randn_like(inputs[6])
    theirs = expected(inputs, mark, to_y, to_last)
    assert all(close(a, b) for a, b in zip(found(inputs, mark, to_y, to_last), theirs, strict=True))
    if mark is not None:
        wrong = found(inputs, mark.clamp(min=1), to_y, to_last)
        assert not all(close(a, b) for a, b in zip(wrong, theirs, strict=True))
    wrong = found([*inputs[:6], inputs[6] * 0], mark, to_y, to_last)
    assert not close(wrong[0], theirs[0])
