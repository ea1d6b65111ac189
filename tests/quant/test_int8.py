"""int8: the error bound of every product, and the choices that keep a model with outliers close to what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openbook as ob
from openbook.errors import ConfigError, InputError
from openbook.models.load import load
from openbook.nn.attention import SelfAttention
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.packed import Packed, quantise
from openbook.nn.serving import matrices, serve_form
from openbook.quant.int8 import Judge, measure, plan_int8, product
from openbook.quant.sample import rows_of, written
from tests.families import ALL, Case, tokens

CASES = {case.name: case for case in ALL}
SOME = [CASES[name] for name in ("llama", "llama-biased-mqa", "gpt2", "gemma2", "mixtral", "mamba", "bert", "t5-gated")]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models."""
    return tmp_path_factory.mktemp("int8")


def own(model: LanguageModel) -> LanguageModel:
    """The same with memory of its own in place of mapped files."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
    return model


@torch.no_grad()
def with_outliers(model: LanguageModel, factor: float = 50.0, channels: int = 2) -> LanguageModel:
    """The same function with some channels far larger than the others, as large trained models have them."""
    own(model)
    for block in model.stack.blocks:
        for branch in block.branches:
            layer, norm = branch.layer, branch.norm
            assert norm is not None
            chosen = torch.randperm(len(norm.weight))[:channels]
            norm.weight[chosen] *= factor
            match layer:
                case SelfAttention():
                    first = [layer.q, layer.k, layer.v]
                case FeedForward():
                    assert layer.gate is not None
                    first = [layer.gate, layer.up]
                    hidden = torch.randperm(len(layer.up.weight))[:channels]
                    layer.up.weight[hidden] *= factor
                    layer.down.weight[:, hidden] /= factor
                case _:
                    raise AssertionError(layer)
            for part in first:
                part.weight[:, chosen] /= factor
    return model


def run(model: LanguageModel, case: Case) -> torch.Tensor:
    ids = tokens(case, 3, 15)
    return model(ids, source=ids if model.source is not None else None)


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The relative error of logits."""
    return float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_within_half_a_step(seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(37, 70) * torch.randn(37, 1).exp()
    whole, scale = quantise(weight)
    back = (whole.float() - 128) * scale.unsqueeze(1)
    assert ((back - weight).abs() <= scale.unsqueeze(1) * 0.5001).all()
    coarse = scale.unsqueeze(1) * ((weight / scale.unsqueeze(1) / 2).round() * 2)  # seeded fault: steps twice as wide
    assert not ((coarse - weight).abs() <= scale.unsqueeze(1) * 0.5001).all()


@pytest.mark.parametrize("smoothed", [False, True])
@torch.no_grad()
def test_what_is_measured_is_what_is_computed(smoothed: bool) -> None:
    x, weight = torch.randn(9, 70), torch.randn(37, 70)
    smooth = torch.rand(70) + 0.5 if smoothed else None
    packed = Packed.of(weight, "int8", None, smooth)
    assert torch.allclose(packed(x), product(x, weight, smooth), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
@torch.no_grad()
def test_every_family_is_planned_and_close(case: Case, root: Path) -> None:
    model = load(case.folder(root))
    before = run(model, case)
    plan = measure(model)
    assert [one.name for one in plan.found] == [n for n, c in matrices(model, "int8").items() if c.kind == "int8"]
    assert all(one.plain > 0 for one in plan.found), "every matrix has been measured"
    assert not any(module._forward_hooks for module in model.modules())
    assert all(one.choice.kind == "int8" and one.strength is None for one in plan.found if one.plain < 0.03)
    served = serve_form(model, "int8", plan.choices)
    assert 0 < off(run(served, case), before) < 0.06


@torch.no_grad()
def test_outliers_are_smoothed(root: Path) -> None:
    case = CASES["llama"]
    before = run(load(case.folder(root)), case)
    same = with_outliers(load(case.folder(root)))
    assert off(run(same, case), before) < 1e-5
    plan = measure(same)
    smoothed = {one.name for one in plan.found if one.strength is not None}
    assert {name for name in smoothed if name.endswith((".q", ".k", ".v", ".gate", ".up", ".down"))} == smoothed
    assert len(smoothed) == 3 * 6
    for block in range(3):
        first, second = (f"stack.blocks.{block}.branches.{n}.layer" for n in range(2))
        assert plan.choices[f"{first}.q"].smooth is plan.choices[f"{first}.v"].smooth
        assert plan.choices[f"{second}.gate"].smooth is plan.choices[f"{second}.up"].smooth
    planned = off(run(serve_form(same, "int8", plan.choices), case), before)
    torch.manual_seed(0)
    blind = off(run(serve_form(with_outliers(load(case.folder(root))), "int8"), case), before)
    assert planned < 0.05
    assert blind > 3 * planned  # seeded fault: the same without the plan


@torch.no_grad()
def test_what_cannot_be_helped_stays_bf16(root: Path) -> None:
    case = CASES["llama"]
    model = load(case.folder(root))
    before = run(model, case)
    plan = measure(model, smooth_above=0.0, keep_above=0.0)
    assert {one.choice.kind for one in plan.found} == {"bf16"}
    assert off(run(serve_form(model, "int8", plan.choices), case), before) < 0.01
    x = torch.randn(8, 16)
    broken = torch.randn(4, 16)
    broken[1, 3] = torch.nan
    assert Judge(0.03, 0.05).judge(["w"], [broken], x)[0].choice.kind == "bf16"


@torch.no_grad()
def test_a_plan_is_a_function_of_the_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["gpt2"]
    model = load(case.folder(root))
    assert torch.equal(written(model), written(model))
    assert not torch.equal(written(model), written(model, seed=1))
    assert [one.error for one in measure(model).found] == [one.error for one in measure(model).found]
    given = plan_int8(model, tokens(case, 4, 30).tolist())
    assert set(given) == set(plan_int8(model))
    assert "int8" in capsys.readouterr().err
    with pytest.raises(InputError, match="no ids"):
        plan_int8(model, [[]])


def test_rows_of_texts() -> None:
    assert rows_of([[1, 2, 3], [4]]).tolist() == [[1, 2, 3, 4]]
    assert rows_of([list(range(100))]).shape == (2, 48)


@torch.no_grad()
def test_the_public_face(root: Path) -> None:
    case = CASES["llama"]
    folder = case.folder(root)
    plain = ob.load(folder)
    model = ob.load(folder, quantize="int8")
    assert isinstance(model.stack.blocks[0].branches[0].layer.q, Packed)
    assert off(run(model, case), run(plain, case)) < 0.05
    assert F.cosine_similarity(run(model, case).flatten(), run(plain, case).flatten(), dim=0) > 0.999
    with pytest.raises(ConfigError, match="Did you mean 'int8'"):
        ob.load(folder, quantize="int-8")
