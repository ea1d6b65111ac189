"""Routers: equal to the published ones of DeepSeek, each row by itself, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openbook.errors import ConfigError
from openbook.models.cost import active, inventory, parameters
from openbook.models.load import load, save
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.init import initialise
from openbook.nn.moe import Mixture
from openbook.nn.routing import Routed, route
from openbook.nn.serving import serve_form
from openbook.nn.state import Context, Dense
from openbook.train.optim import Optimisation, Optimizer

EXPERT = spec.MLP(hidden=5)
GROUPED = spec.Routing(score="sigmoid", scale=2.5, groups=4, top_groups=2, group_score="sum2", correction=True)


def moe(rule: spec.Routing, experts: int = 12, top_k: int = 3, **more: Any) -> spec.MoE:
    return spec.MoE(experts=experts, top_k=top_k, expert=EXPERT, routing=rule, **more)


def dense(weights: Tensor, chosen: Tensor, experts: int) -> Tensor:
    return torch.zeros(len(weights), experts).scatter(1, chosen, weights)


@pytest.mark.parametrize("renormalise", [True, False])
def test_sigmoid_in_groups_is_that_of_deepseek_v3(renormalise: bool) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=7, n_routed_experts=12, num_experts_per_tok=3, n_group=4, topk_group=2,
        routed_scaling_factor=2.5, norm_topk_prob=renormalise,
    )  # fmt: skip
    theirs = DeepseekV3TopkRouter(config)
    torch.manual_seed(0)
    nn.init.normal_(theirs.weight)
    theirs.e_score_correction_bias.normal_(0, 0.3)
    logits, weights, chosen = theirs(torch.randn(200, 7))
    rule = replace(GROUPED, renormalise=renormalise)
    ours = route(moe(rule), logits, theirs.e_score_correction_bias)
    torch.testing.assert_close(dense(ours.weights, ours.chosen, 12), dense(weights, chosen, 12))
    without = route(moe(rule), logits, torch.zeros(12))  # the bias chooses
    assert not torch.equal(without.chosen, ours.chosen)
    ungrouped = route(moe(replace(rule, groups=1, top_groups=1)), logits, theirs.e_score_correction_bias)
    assert not torch.equal(ungrouped.chosen, ours.chosen)


@pytest.mark.parametrize("groups", [1, 3])
def test_softmax_in_groups_is_that_of_deepseek_v2(groups: int) -> None:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = DeepseekV2Config(
        hidden_size=8, num_attention_heads=2,
        n_routed_experts=12, num_experts_per_tok=3, n_group=groups, topk_group=2 if groups > 1 else 1,
        routed_scaling_factor=1.7, topk_method="group_limited_greedy" if groups > 1 else "greedy",
    )  # fmt: skip
    theirs = DeepseekV2TopkRouter(config)
    torch.manual_seed(0)
    nn.init.normal_(theirs.weight)
    logits, weights, chosen = theirs(torch.randn(200, 8))
    rule = spec.Routing(renormalise=False, scale=1.7, groups=groups, top_groups=2 if groups > 1 else 1)
    ours = route(moe(rule), logits)
    torch.testing.assert_close(dense(ours.weights, ours.chosen, 12), dense(weights, chosen, 12))


RULES = {
    "softmax": spec.Routing(),
    "sigmoid": spec.Routing(score="sigmoid", bias=True),
    "groups": spec.Routing(groups=3, top_groups=2, scale=1.5, renormalise=False),
    "corrected": GROUPED,
}


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_row_is_routed_by_itself(rule: spec.Routing) -> None:
    """Bit for bit, also where many experts are equally good."""
    torch.manual_seed(1)
    logits = torch.randn(67, 12).mul(2).round() / 2  # many ties
    correction = torch.randn(12).round() if rule.correction else None
    whole = route(moe(rule), logits, correction)
    for row in range(len(logits)):
        for rows in (slice(row, row + 1), slice(max(row - 5, 0), row + 1)):
            alone = route(moe(rule), logits[rows].clone(), correction)
            assert torch.equal(alone.chosen[-1], whole.chosen[row])
            assert torch.equal(alone.weights[-1], whole.weights[row])


def model_of(layer: spec.MoE, layers: int = 2) -> spec.Model:
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=6, rope=spec.Rope(dim=6))
    block = spec.Block(branches=(spec.Branch(layer=attention, norm=spec.Norm()), spec.Branch(layer=layer)))
    stack = spec.Stack(dim=9, blocks=(block,) * layers, final_norm=spec.Norm())
    return spec.Model(embed=spec.Embed(vocab=31, dim=9), stack=stack, heads=(spec.Language(),), context=64)


SHARED = moe(GROUPED, shared=spec.MLP(hidden=11), shared_gate=True)


def test_shared_experts_are_of_every_token() -> None:
    torch.manual_seed(0)
    layer = Mixture(SHARED, 9)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 8, 9)
    ctx = Context(Dense(torch.zeros(2, 8), None, (), 8), ())
    assert layer.shared is not None
    assert layer.shared_gate is not None
    alone = replace(SHARED, shared=None, shared_gate=False)
    bare = Mixture(alone, 9)
    bare.load_state_dict({n: p for n, p in layer.state_dict().items() if not n.startswith("shared")})
    shared = torch.sigmoid(x @ layer.shared_gate.weight.T) * layer.shared(x, ctx)
    torch.testing.assert_close(layer(x, ctx), bare(x, ctx) + shared)


def test_the_correction_is_saved_and_not_optimised(tmp_path: Path) -> None:
    model = build(model_of(SHARED))
    initialise(model, 0)
    names = [name for name, _ in model.named_parameters() if name.endswith("correction")]
    assert len(names) == 2
    assert not set(names) & set(Optimizer(model, Optimisation()).named)
    for name in names:
        model.get_parameter(name).normal_()
    with pytest.warns(match="openbook"):
        save(model, tmp_path)
    again = load(tmp_path)
    for name in names:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name))
        assert not again.get_parameter(name).requires_grad


@torch.no_grad()
def test_routers_are_served_in_fp32() -> None:
    model = build(model_of(SHARED)).eval()
    initialise(model, 0, std=0.5)
    ids = torch.randint(0, 31, (3, 9))
    plain: list[Routed] = []
    model(ids, routers=plain)
    served: list[Routed] = []
    serve_form(model, "int8")
    model(ids, routers=served)
    assert torch.equal(plain[0].chosen, served[0].chosen)
    torch.testing.assert_close(plain[0].logits, served[0].logits, atol=0.05, rtol=0.05)
    assert not torch.equal(plain[1].logits, served[1].logits)


def test_what_a_token_meets_is_counted() -> None:
    found = inventory(model_of(SHARED, 1))
    sums = parameters(found)
    matrices, shared = 3 * 5 * 9, 3 * 11 * 9
    assert sums["experts"] == 12 * matrices + shared
    assert sums["routers"] == 12 * 9 + 12 + 9
    assert active(found) == sum(sums.values()) - 9 * matrices


BAD = {
    "5 groups": (spec.Routing(groups=5), "must divide"),
    "more groups than there are": (spec.Routing(groups=3, top_groups=4), "1 to `groups`"),
    "groups too small": (spec.Routing(groups=12), "cannot give"),
    "no two in a group": (spec.Routing(groups=12, top_groups=4, group_score="sum2"), "two experts each"),
}


@pytest.mark.parametrize(("rule", "why"), BAD.values(), ids=BAD)
def test_impossible_routing_is_refused(rule: spec.Routing, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(model_of(moe(rule)))


def test_a_gate_needs_what_it_gates() -> None:
    with pytest.raises(ConfigError, match="shared_gate"):
        build(model_of(moe(spec.Routing(), shared_gate=True)))
