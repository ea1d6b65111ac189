"""A model as a module: what it is started with, its heads, rows, checkpoints, and errors for wrong inputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.errors import ConfigError, InputError, Refusal
from openbook.models.load import load
from openbook.models.make import make
from openbook.models.registry import read
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.plain import from_plain, to_plain
from openbook.nn.routing import Routed, balance_loss
from tests.families import ALL, Case, each, tokens

NORM = spec.Norm()
ATTENTION = spec.Attention(heads=4, kv_heads=2, head_dim=8, rope=spec.Rope(dim=8))


def model_of(*layers: spec.Layer, heads: tuple[spec.Head, ...] = (spec.Language(),), **more: Any) -> spec.Model:
    block = spec.Block(branches=tuple(spec.Branch(layer=layer, norm=NORM) for layer in layers))
    stack = spec.Stack(dim=32, blocks=(block,) * 3, final_norm=NORM)
    return spec.Model(embed=spec.Embed(vocab=50, dim=32), stack=stack, heads=heads, **more)


# ------------------------------------------------------------------------------------------------ beginnings


def test_a_new_model_is_a_pure_function_of_spec_and_seed() -> None:
    value = model_of(ATTENTION, spec.MLP(hidden=64))
    first, again, other = make(value, seed=3), make(value, seed=3), make(value, seed=4)
    torch.rand(5)  # the global random state has no say
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == ("norm" in name)


@pytest.mark.parametrize(
    "layer",
    [
        spec.MLP(hidden=64, bias=True),
        spec.MoE(experts=3, top_k=2, expert=spec.MLP(hidden=9)),
        spec.Selective(inner=40, rank=2),
    ],
)
def test_initial_weights(layer: spec.Layer) -> None:
    model = make(model_of(ATTENTION, layer, heads=(spec.Language(tied=False, bias=True),)), seed=0)
    residual = 0.02 / math.sqrt(6)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith((".layer.out.weight", ".layer.down.weight", "experts.down")):
            assert float(parameter.detach().std()) == pytest.approx(residual, rel=0.2)
        elif name.endswith((".q.weight", ".up.weight", "experts.up", "tokens.weight", "language.weight")):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.2)
    loss = torch.nn.functional.cross_entropy(model(torch.arange(40).unsqueeze(0))[0], torch.arange(40))
    assert float(loss.detach()) == pytest.approx(math.log(50), rel=0.05)


def test_padding_starts_at_zero() -> None:
    value = model_of(ATTENTION)
    embed = spec.Embed(vocab=50, dim=32, padding=7)
    model = make(spec.Model(embed=embed, stack=value.stack, heads=value.heads))
    assert (model.embed.tokens.weight[7] == 0).all()
    assert (model.embed.tokens.weight[6] != 0).all()


@each(ALL)
def test_every_family_starts_finite(case: Case) -> None:
    model = make(read(case.reference().config.to_dict())[1], seed=0)
    ids = tokens(case, 2, 9)
    out = model(ids, source=ids) if model.source is not None else model(ids, marks=case.marks(ids))
    assert out.isfinite().all()
    out.sum().backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learned)


# ------------------------------------------------------------------------------------------------ running


def test_rows_and_hidden_states() -> None:
    model = make(model_of(ATTENTION, spec.MLP(hidden=64)))
    ids = torch.randint(0, 50, (3, 7))
    logits = model(ids)
    rows = torch.tensor([0, 13, 20])
    assert torch.allclose(model(ids, rows=rows), logits.flatten(0, 1)[rows], atol=1e-6)
    assert torch.allclose(model.head(model.hidden(ids)), logits, atol=1e-6)


def test_parameters_in_fp32_compute_in_bf16() -> None:
    model = make(model_of(ATTENTION, spec.MoE(experts=4, top_k=2, expert=spec.MLP(hidden=24))))
    ids = torch.randint(0, 50, (2, 7))
    exact = model(ids)
    model.compute_dtype = torch.bfloat16
    half = model(ids)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.02
    half.float().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def gradients(model: LanguageModel, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    routers: list[Routed] = []
    out = model(ids, source=ids) if model.source is not None else model(ids, routers=routers)
    loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
    if routers:
        loss = loss + 10 * balance_loss(list(routers))
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@each(ALL)
def test_checkpoints_change_no_gradient(case: Case, tmp_path: Path) -> None:
    """Recomputing each block in the backward pass, the router's loss included."""
    model = load(case.folder(tmp_path))
    ids = tokens(case, 2, 9)
    plain = gradients(model, ids)
    model.train()
    for module in model.modules():
        module.training = module is model.stack  # recomputing, but dropping nothing
    model.stack.spec = replace(model.stack.spec, dropout=0.0)
    model.stack.checkpoints = True
    again = gradients(model, ids)
    assert again.keys() == plain.keys()
    assert all(torch.allclose(again[name], plain[name], rtol=1e-4, atol=1e-5) for name in plain)


def test_the_last_token_of_each_row_is_classified() -> None:
    model = make(model_of(ATTENTION, heads=(spec.Classes(count=4, over="last", bias=False),)))
    ids = torch.randint(0, 50, (2, 6))
    segments = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    hidden = model.encode(ids, segments=segments)
    logits = model.classify(hidden, segments=segments)
    assert torch.allclose(logits[1], model(ids[1:, :4])[0], atol=1e-5)
    assert torch.allclose(logits[0], model(ids[:1])[0], atol=1e-5)


# ------------------------------------------------------------------------------------------------ wrong inputs


def test_wrong_inputs_are_clear() -> None:
    model = make(model_of(ATTENTION))
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(InputError, match=r"must be whole numbers \[B,T\]"):
        model(ids.float())
    with pytest.raises(InputError, match=r"must be whole numbers \[B,T\]"):
        model(ids[0])
    with pytest.raises(InputError, match="`segments` must have the shape"):
        model(ids, segments=torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="no encoder"):
        model(ids, source=ids)
    with pytest.raises(Refusal, match="no pooler"):
        model.pool(model.encode(ids))
    with pytest.raises(Refusal, match="no head that gives logits"):
        make(model_of(ATTENTION, heads=()))(ids)


def test_a_row_longer_than_its_learned_positions() -> None:
    value = model_of(spec.Attention(heads=2, kv_heads=2, head_dim=16))
    embed = spec.Embed(vocab=50, dim=32, positions=spec.Learned(count=6))
    model = make(spec.Model(embed=embed, stack=value.stack, heads=value.heads))
    assert model(torch.zeros(1, 6, dtype=torch.int64)).shape == (1, 6, 50)
    with pytest.raises(InputError, match="6 learned positions; a row of 7 tokens"):
        model(torch.zeros(1, 7, dtype=torch.int64))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (spec.Attention(heads=12, kv_heads=5, head_dim=2), "Use 1, 2, 3, 4, 6 or 12."),
        (spec.Attention(heads=2, kv_heads=2, head_dim=4, rope=spec.Rope(dim=6)), "at most `head_dim`"),
        (spec.Attention(heads=2, kv_heads=2, head_dim=4, rope=spec.Rope(dim=3)), "must be even"),
        (spec.Attention(heads=2, kv_heads=2, head_dim=4, relative=True), "needs a stack with `relative`"),
        (spec.Attention(heads=2, kv_heads=2, head_dim=4, scale=-1.0), "`scale` of scores must be above 0"),
        (spec.CrossAttention(heads=2, kv_heads=2, head_dim=4), "needs a `source`"),
        (spec.MLP(hidden=4, activation="gelo"), "Did you mean 'gelu'"),
        (spec.MLP(hidden=0), "`hidden` must be 1"),
        (spec.MoE(experts=2, top_k=3, expert=spec.MLP(hidden=4)), "`top_k` must be 1 to `experts`"),
        (spec.Selective(inner=4, rank=1, activation="x"), "Unknown activation 'x'"),
    ],
)
def test_impossible_layers(layer: spec.Layer, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(model_of(layer))
    assert message in str(error.value)


@each(ALL)
def test_specs_are_plain_data_and_back(case: Case) -> None:
    model = read(case.reference().config.to_dict())[1]
    plain = json.loads(json.dumps(to_plain(model)))
    assert from_plain(plain, spec.Model) == model
    assert len(json.dumps(plain)) < 4000  # runs of equal blocks are written once


def test_an_id_outside_the_vocabulary_is_said() -> None:
    from openbook.models.make import make, spec_of

    model = make(spec_of("llama", {"vocab": 20, "dim": 8, "layers": 1, "heads": 2, "hidden": 8, "context": 8}))
    with pytest.raises(InputError, match="vocabulary of 20: got ids from 1 to 20"):
        model(torch.tensor([[1, 20]]))
