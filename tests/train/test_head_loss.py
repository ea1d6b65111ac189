"""Law 2 for the head's loss: the fused pass equals the reference, outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from openbook.train import head_loss as module
from openbook.train.head_loss import HeadWeights, head_loss, learned, reference_loss

N, V, D = 37, 101, 12


def case(dtype: torch.dtype, bias: bool, weight_dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = {"hidden": torch.randn(N, D, dtype=dtype) * 2, "weight": torch.randn(V, D, dtype=weight_dtype)}
    if bias:
        made["bias"] = torch.randn(V, dtype=weight_dtype)
    return {name: value.requires_grad_() for name, value in made.items()}


def run(
    function: Any, leaves: dict[str, torch.Tensor], targets: torch.Tensor, softcap: float | None, **rest: float
) -> Any:
    for leaf in leaves.values():
        leaf.grad = None
    head = HeadWeights(leaves["weight"], leaves.get("bias"), softcap)
    loss = function(leaves["hidden"], head, targets, **rest)
    (loss.total * 0.37).backward()
    return loss, {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("small", [False, True], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("smoothing", "z_weight"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_fused_equals_reference(
    small: bool, softcap: float | None, bias: bool, smoothing: float, z_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(module, "LOGITS_BYTES", 7 * V * 4)
        monkeypatch.setattr(module, "BLOCK_BYTES", {"cpu": 3 * V * 4, "other": 3 * V * 4})
    leaves = case(torch.float32, bias)
    targets = torch.randint(V, (N,))
    fused, gradients = run(head_loss, leaves, targets, softcap, smoothing=smoothing, z_weight=z_weight)
    plain, wanted = run(reference_loss, leaves, targets, softcap, smoothing=smoothing, z_weight=z_weight)
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    for name, theirs in wanted.items():
        torch.testing.assert_close(gradients[name], theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_bfloat16_is_as_near_to_the_truth_as_the_reference() -> None:
    leaves = case(torch.bfloat16, True)
    targets = torch.randint(V, (N,))
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    _, truth = run(reference_loss_64, exact, targets, None)
    _, fused = run(head_loss, leaves, targets, None)
    _, plain = run(reference_loss, leaves, targets, None)
    for name in truth:
        mine = (fused[name].double() - truth[name]).norm() / truth[name].norm()
        theirs = (plain[name].double() - truth[name]).norm() / truth[name].norm()
        assert mine < 1.5 * theirs + 1e-3, (name, mine, theirs)
    assert fused["weight"].dtype == torch.float32
    assert fused["hidden"].dtype == torch.bfloat16


def reference_loss_64(hidden: torch.Tensor, head: HeadWeights, targets: torch.Tensor) -> Any:
    logits = F.linear(hidden, head.weight, head.bias)
    total = F.cross_entropy(logits, targets, reduction="sum")
    return module.HeadLoss(total, total, total)


def test_label_smoothing_and_z_are_torch_s_and_palm_s() -> None:
    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    logits = hidden @ weight.T
    loss = head_loss(hidden, HeadWeights(weight), targets, smoothing=0.1, z_weight=1e-4)
    wanted = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss.total, wanted + 1e-4 * logits.logsumexp(-1).square().sum())
    torch.testing.assert_close(loss.nll, F.cross_entropy(logits, targets, reduction="sum"))


def test_ignored_places_cost_nothing_and_none_left_is_zero() -> None:
    hidden = torch.randn(2, 3, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    targets = torch.tensor([[1, -100, 2], [-100, -100, 3]])
    states, wanted = learned(hidden, targets)
    assert states.shape == (3, D)
    head_loss(states, HeadWeights(weight), wanted).total.backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, targets >= 0)
    states, wanted = learned(hidden, torch.full((2, 3), -100))
    loss = head_loss(states, HeadWeights(weight), wanted)
    assert loss.total.item() == 0.0
    loss.total.backward()
    assert torch.isfinite(hidden.grad).all()


def test_without_gradient_the_logits_stay_what_they_are() -> None:
    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    with torch.no_grad():
        loss = head_loss(hidden, HeadWeights(weight.requires_grad_()), targets, smoothing=0.1)
    torch.testing.assert_close(loss.total, reference_loss(hidden, HeadWeights(weight), targets, 0.1).total)
    assert not loss.total.requires_grad


def test_frozen_parts_get_no_gradient() -> None:
    hidden, weight, targets = torch.randn(N, D, requires_grad=True), torch.randn(V, D), torch.randint(V, (N,))
    head_loss(hidden, HeadWeights(weight), targets).total.backward()
    assert hidden.grad is not None
    frozen, learnt = torch.randn(N, D), torch.randn(V, D, requires_grad=True)
    head_loss(frozen, HeadWeights(learnt), targets).total.backward()
    assert learnt.grad is not None


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded fault: a fused gradient that forgets the target."""
    leaves, targets = case(torch.float32, False), torch.randint(V, (N,))
    _, wanted = run(reference_loss, leaves, targets, None)
    real = torch.Tensor.scatter_add_
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda self, *_: self)
    _, faulty = run(head_loss, leaves, targets, None)
    monkeypatch.setattr(torch.Tensor, "scatter_add_", real)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(faulty["weight"], wanted["weight"], rtol=1e-4, atol=1e-5)
