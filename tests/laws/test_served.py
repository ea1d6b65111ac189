"""Laws 2 to 4 for served models: a block in two native calls is its layers bit for bit; the form is reversible."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openbook.models.make import make
from openbook.native import rows as native
from openbook.nn import served, spec
from openbook.nn.linear import Linear
from openbook.nn.packed import Packed, RowLinear
from openbook.nn.serving import FORMS, assign, logical, restore, serve_form
from openbook.nn.state import Context, Dense
from tests.units import no_gradients, numbers, unit, unlike_alone

__all__ = ["no_gradients", "unit"]
pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: the reference does the work")

# ---------------------------------------------------------------------------------------------- blocks and models

RMS, LAYER = spec.Norm(kind="rms", eps=1e-5), spec.Norm(kind="layer", eps=1e-5, bias=True)
ROPE = spec.Rope(dim=8, theta=1000.0)
PLAIN = spec.Attention(heads=4, kv_heads=2, head_dim=12)


def model_of(attention: spec.Attention, mlp: spec.MLP, norm: spec.Norm, place: str, scale: float = 1.0) -> spec.Model:
    parallel = place == "plain"
    inner = None if parallel else norm
    branches = tuple(
        spec.Branch(layer=layer, norm=inner, place=place, scale=scale)  # type: ignore[arg-type]
        for layer in (attention, mlp)
    )
    block = spec.Block(branches=branches, parallel=parallel, norm=norm if parallel else None)
    stack = spec.Stack(dim=36, blocks=(block, block), final_norm=norm)
    return spec.Model(embed=spec.Embed(vocab=50, dim=36), stack=stack, heads=(spec.Language(tied=True, softcap=20.0),))


def side_by_side(attention: spec.Attention, mlp: spec.MLP, norm: spec.Norm) -> spec.Model:
    """Parallel branches, each with a norm of its own."""
    of = model_of(attention, mlp, norm, "plain")
    branches = tuple(replace(branch, norm=norm) for branch in of.stack.blocks[0].branches)
    return replace(of, stack=replace(of.stack, blocks=(spec.Block(branches=branches, parallel=True),) * 2))


MODELS = {
    "pre": model_of(replace(PLAIN, rope=ROPE), spec.MLP(hidden=50), RMS, "pre"),
    "normed heads": model_of(replace(PLAIN, rope=ROPE, norm=RMS), spec.MLP(hidden=50, activation="relu"), RMS, "pre"),
    "biased": model_of(
        replace(PLAIN, bias=True, out_bias=True),
        spec.MLP(hidden=70, activation="gelu", gated=False, bias=True),
        LAYER,
        "pre",
    ),
    "both": model_of(
        replace(PLAIN, norm=replace(RMS, offset=1.0)), spec.MLP(hidden=50), replace(RMS, offset=1.0), "both"
    ),
    "post": model_of(PLAIN, spec.MLP(hidden=50, gated=False, activation="gelu_tanh"), LAYER, "post"),
    "scaled": model_of(replace(PLAIN, kv_heads=1), spec.MLP(hidden=50), RMS, "pre", scale=0.7),
    "neighbours": model_of(
        replace(PLAIN, rope=replace(ROPE, neighbours=True)), spec.MLP(hidden=50, gated=False), LAYER, "plain"
    ),
    "all neighbours": model_of(
        replace(PLAIN, rope=replace(ROPE, dim=18, neighbours=True), head_dim=18), spec.MLP(hidden=50), RMS, "pre"
    ),
    "clipped": model_of(replace(PLAIN, rope=ROPE, norm=RMS, clip=0.3), spec.MLP(hidden=50), RMS, "pre"),
    "each head's weights": model_of(
        replace(PLAIN, rope=ROPE, norm=spec.QueryKeyNorm(norm=LAYER, over="heads"), clip=0.4),
        spec.MLP(hidden=50),
        spec.Norm(kind="layer", weight=False),
        "after",
    ),
    "over all heads": model_of(
        replace(PLAIN, rope=replace(ROPE, neighbours=True), norm=spec.QueryKeyNorm(norm=RMS, over="width")),
        spec.MLP(hidden=50),
        RMS,
        "after",
    ),
    "clipped alone": model_of(replace(PLAIN, clip=0.3), spec.MLP(hidden=50), RMS, "pre"),
    "norms side by side": side_by_side(replace(PLAIN, rope=ROPE), spec.MLP(hidden=50, gated=False), LAYER),
    "parallel": model_of(replace(PLAIN, rope=ROPE), spec.MLP(hidden=50, gated=False), LAYER, "plain", scale=0.9),
}


def by_modules(model: torch.nn.Module, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(served, "run", lambda *_: None)
        return model(ids)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", [*FORMS, "mixed"])
def test_a_block_is_its_modules_bit_for_bit(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(MODELS[name], seed=1).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    serve_form(model, "int8" if form == "mixed" else form)
    attention = model.stack.blocks[0].branches[0].layer
    if form == "mixed":
        attention.k = Packed.of(attention.k.unpack(), "bf16", attention.k.bias)
        attention.v = RowLinear.of(torch.nn.Parameter(attention.v.unpack()), attention.v.bias)
        attention.q = Packed.of(attention.q.unpack(), "int8", attention.q.bias, torch.rand(36) + 0.5)
    for shape in ((1, 1), (2, 3), (3, 15), (2, 300))[: 4 if name == "pre" else 3]:
        ids = torch.randint(50, shape, generator=torch.Generator().manual_seed(shape[1]))
        assert torch.equal(model(ids), by_modules(model, ids, monkeypatch))
    assert all(block.served is not None and block.served.fits for block in model.stack.blocks)
    block = model.stack.blocks[1].served
    block.block.ffn.factor *= 1.01  # the seeded fault
    assert not torch.equal(model(ids), by_modules(model, ids, monkeypatch))


def test_a_changed_block_is_left_to_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(RowLinear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = serve_form(make(MODELS["pre"], seed=1).eval(), "fp32")
    ids = torch.arange(5).unsqueeze(0)
    before = model(ids)
    ffn = model.stack.blocks[0].branches[1].layer
    old, ffn.up = ffn.up, Doubled(0, 0)
    ffn.up.weight, ffn.up.bias = old.weight, old.bias
    after = model(ids)
    assert not torch.equal(before, after)
    assert torch.equal(after, by_modules(model, ids, monkeypatch))
    ffn.up = old
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_for_serving_is_reversible(form: str) -> None:
    model = make(MODELS["biased"], seed=1).eval().bfloat16()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(6).unsqueeze(0)
    serve_form(serve_form(model, form), form)
    assert model.rewrites == [f"serve {form}"]
    assert model.dtype == torch.float32
    logits = model(ids)
    kept = dict(logical(model))
    assert list(kept) == list(before)
    assert all(kept[name].dtype == before[name].dtype for name in before)
    if form != "int8":
        assert all(torch.equal(kept[name], before[name]) for name in before)
    name = "stack.blocks.1.branches.1.layer.up.weight"
    assign(model, name, before[name] * 1.5)
    assert not torch.equal(model(ids), logits)
    assign(model, name, before[name])
    assert torch.equal(model(ids), logits)
    assign(model, "embed.tokens.weight", before["embed.tokens.weight"] * 1.5)
    changed = model(ids)
    assign(model, "embed.tokens.weight", before["embed.tokens.weight"])
    assert torch.equal(model(ids), logits)
    assert not torch.equal(changed, logits)
    restore(model)
    assert model.rewrites == []
    assert {name: p.dtype for name, p in model.named_parameters()} == {name: p.dtype for name, p in before.items()}
    assert all(type(module) is not RowLinear for module in model.modules() if isinstance(module, Linear))
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())


def of_layer(layer: spec.MoE | spec.Selective) -> spec.Model:
    stack = spec.Stack(dim=36, blocks=(spec.Block(branches=(spec.Branch(layer=layer, norm=RMS),)),) * 2, final_norm=RMS)
    return spec.Model(embed=spec.Embed(vocab=50, dim=36), stack=stack, heads=(spec.Language(tied=True),))


OTHERS = {
    "experts": of_layer(spec.MoE(experts=5, top_k=2, expert=spec.MLP(hidden=50))),
    "chosen experts": of_layer(
        spec.MoE(
            experts=12,
            top_k=3,
            expert=spec.MLP(hidden=21, bias=True, limit=0.3, offset=1.0),
            routing=spec.Routing(score="sigmoid", groups=4, top_groups=2, group_score="sum2", correction=True),
            shared=spec.MLP(hidden=17, gated=False),
            shared_gate=True,
        )
    ),
    "state space": of_layer(spec.Selective(inner=72, state=6, kernel=3, rank=4)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["pre", "both", *OTHERS])
def test_a_model_does_not_know_of_other_rows(name: str, form: str) -> None:
    model = serve_form(make((MODELS | OTHERS)[name], seed=1).eval(), form)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    for tokens in (1, 6):
        ids = torch.randint(50, (9, tokens), generator=torch.Generator().manual_seed(1))
        if tokens == 1 or name in OTHERS:  # attention over more than one token is the state's
            assert not unlike_alone(lambda x: model(x).flatten(1), ids)


def test_a_copy_stands_by_itself() -> None:
    model = serve_form(make(MODELS["pre"], seed=1).eval(), "int8")
    ids = torch.arange(5).unsqueeze(0)
    logits = model(ids)
    copied = copy.deepcopy(model)
    assign(model, "stack.blocks.0.branches.0.layer.v.weight", torch.zeros(24, 36))
    assert torch.equal(copied(ids), logits)
    assert not torch.equal(model(ids), logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["normed heads", "both", "parallel"])
def test_a_poisoned_row_does_not_touch_its_neighbours(name: str, form: str) -> None:
    model = serve_form(make(MODELS[name], seed=1).eval(), form)
    for count in (3, 9):
        x, positions = numbers(count, 1, 36), torch.zeros(count, 1, dtype=torch.int64)

        def run(x: Tensor, positions: Tensor = positions) -> Tensor:
            state = Dense(positions, None, model.patterns, 1)
            rotary = tuple(table.rows(positions, 1, 1, torch.float32) for table in model.stack.tables)
            return model.head(model.stack(x, Context(state, rotary)))

        clean = run(x)
        x[1, 0, 7] = float("nan")
        y = run(x)
        assert y[1].isnan().all()
        assert torch.equal(torch.cat([y[:1], y[2:]]), torch.cat([clean[:1], clean[2:]]))


@pytest.mark.parametrize("form", FORMS)
def test_without_a_compiler_the_references_serve(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = serve_form(make(MODELS["both"], seed=1).eval(), form)
    ids = torch.arange(8).view(2, 4)
    logits = model(ids)
    monkeypatch.setattr(native, "library", lambda: None)
    bound = 1e-5 if form == "fp32" else 2e-3  # a last bit may move a number to the next whole one
    assert (model(ids) - logits).abs().max() <= bound * float(logits.abs().max())
    again = serve_form(make(MODELS["both"], seed=1).eval(), form)
    assert torch.equal(again(ids), model(ids))
