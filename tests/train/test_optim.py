"""Optimisers: kinds of parameters, equality with torch's own, state by name; and the schedules."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openbook.errors import CheckpointError, ConfigError
from openbook.train.optim import Kind, Muon, Optimisation, Optimizer, kinds, orthogonal
from openbook.train.schedules import Schedule
from tests.train.tiny import tiny_model


def test_every_parameter_has_a_kind() -> None:
    model = tiny_model(tied=False, bias=True, experts=4)
    found = kinds(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["embed.tokens.weight"] is Kind.EMBEDDING
    assert found["heads.language.weight"] is Kind.EMBEDDING
    assert found["heads.language.bias"] is Kind.VECTOR
    assert found["stack.final_norm.weight"] is Kind.VECTOR
    assert found["stack.blocks.0.branches.0.layer.q.weight"] is Kind.MATRIX
    assert found["stack.blocks.1.branches.1.layer.experts.up"] is Kind.MATRIX


def test_vectors_are_never_decayed_and_multipliers_apply() -> None:
    settings = Optimisation(lr=0.1, embedding_lr=0.5, weight_decay=0.3, embedding_decay=False)
    optimizer = Optimizer(tiny_model(), settings)
    assert optimizer.step(0.5) == 0.05
    groups = {group["scale"]: group for part in optimizer.parts for group in part.param_groups}
    assert groups[0.5]["lr"] == 0.025
    assert groups[0.5]["weight_decay"] == 0.0
    assert sorted(g["weight_decay"] for part in optimizer.parts for g in part.param_groups) == [0.0, 0.0, 0.3]


def test_muon_is_torch_s_on_matrices() -> None:
    ours = torch.nn.Parameter(torch.randn(24, 10))
    theirs = torch.nn.Parameter(ours.detach().clone())
    mine = Muon([ours], lr=0.02, weight_decay=0.1, momentum=0.95)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(24, 10)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
    assert (ours - theirs).abs().mean() < 3e-4


def test_stacked_experts_are_matrices_one_by_one() -> None:
    stack = torch.randn(3, 8, 20)
    one_by_one = torch.stack([orthogonal(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonal(stack), one_by_one, rtol=2e-2, atol=2e-2)
    values = torch.linalg.svdvals(orthogonal(torch.randn(16, 40)).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_round_by_name(name: str) -> None:
    model = tiny_model(experts=4)
    optimizer = Optimizer(model, Optimisation(name=name))  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1.0)
    state = {key: value.clone() for key, value in optimizer.state().items()}
    assert any(key.startswith("stack.blocks.0") for key in state)
    other = Optimizer(tiny_model(experts=4), Optimisation(name=name))  # type: ignore[arg-type]
    other.restore(state)
    assert all(torch.equal(value, other.state()[key]) for key, value in state.items())
    with pytest.raises(CheckpointError, match="no parameter"):
        other.restore({"nobody/exp_avg": torch.zeros(1)})


def test_nothing_to_train_is_an_error() -> None:
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        Optimizer(model, Optimisation())


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": math.nan}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"momentum": 1.5}]
)
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(wrong))}"):
        Optimisation(**wrong)  # type: ignore[arg-type]


@given(
    st.sampled_from(["cosine", "linear", "wsd", "inverse-sqrt", "constant"]),
    st.integers(1, 300),
    st.floats(0, 50),
    st.floats(0, 1),
    st.floats(0.01, 60),
)
def test_every_schedule_stays_between_nothing_and_the_peak(
    shape: str, steps: int, warmup: float, floor: float, decay: float
) -> None:
    schedule = Schedule(shape=shape, warmup=warmup, floor=floor, decay=decay)  # type: ignore[arg-type]
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 < f <= 1 or (f == 0 and floor == 0) for f in factors)
    rising = round(warmup * steps) if warmup < 1 else int(warmup)
    after = factors[max(rising - 1, 0) :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    assert all(a <= b for a, b in itertools.pairwise(factors[:rising]))


def test_shapes_at_known_places() -> None:
    cosine = Schedule(shape="cosine", warmup=10, floor=0.1)
    assert cosine.factor(0, 110) == 0.1
    assert cosine.factor(9, 110) == 1.0
    assert cosine.factor(60, 110) == pytest.approx(0.55)
    assert cosine.factor(110, 110) == pytest.approx(0.1)
    assert Schedule(shape="linear", warmup=0, floor=0.0).factor(50, 100) == pytest.approx(0.5)
    wsd = Schedule(shape="wsd", warmup=0, decay=0.2, floor=0.0)
    assert wsd.factor(79, 100) == 1.0
    assert wsd.factor(85, 100) == pytest.approx(0.5)
    assert Schedule(shape="inverse-sqrt", warmup=100).factor(399, 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", [{"warmup": -1.0}, {"floor": 1.5}, {"decay": 0.0}, {"warmup": math.inf}])
def test_impossible_schedules_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{next(iter(wrong))}"):
        Schedule(**wrong)  # type: ignore[arg-type]
