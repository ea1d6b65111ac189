"""Laws 1 to 3 for latent attention: its two forms are one function, its cache holds the latent and nothing else.

Maximum absolute difference ≤ 1e-5 × max(1, largest reference value) in fp32; the forms for serving are held row by row
to the last bit. Each law has a seeded fault.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openbook.errors import ConfigError, Refusal
from openbook.generate.cache import Contiguous
from openbook.generate.store import Store
from openbook.models.make import make
from openbook.native import rows as native
from openbook.nn import latent, spec
from openbook.nn.latent import HeadMaps, LatentAttention, ServedHeadMaps
from openbook.nn.model import LanguageModel
from openbook.nn.serving import FORMS, Choice, assign, logical, matrices, restore, serve_form
from tests.laws.test_shards import cut_latent
from tests.units import no_gradients, unit, unlike_alone

__all__ = ["no_gradients", "unit"]

BOUND = 1e-5
LATENT = spec.LatentAttention(
    heads=3, kv_rank=20, nope_dim=10, value_dim=14, q_rank=13, rope=spec.Rope(dim=6, theta=700.0, neighbours=True)
)
KINDS = {
    "usual": LATENT,
    "plain queries": replace(LATENT, q_rank=None, rope=spec.Rope(dim=6)),
    "biased": replace(LATENT, bias=True, out_bias=True, scale=0.4),
    "window": replace(LATENT, pattern=spec.Pattern(window=4)),
}


def model_of(layer: spec.LatentAttention) -> LanguageModel:
    """Two blocks of it, with weights that are no defaults."""
    block = spec.Block(
        branches=(spec.Branch(layer=layer, norm=spec.Norm()), spec.Branch(layer=spec.MLP(hidden=40), norm=spec.Norm()))
    )
    stack = spec.Stack(dim=36, blocks=(block,) * 2, final_norm=spec.Norm())
    made = make(spec.Model(embed=spec.Embed(vocab=50, dim=36), stack=stack, heads=(spec.Language(),), context=64))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def ids_of(rows: int, count: int) -> Tensor:
    return torch.randint(50, (rows, count), generator=torch.Generator().manual_seed(rows * 100 + count))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """The bound of law 1; NaN is never close."""
    return bool((ours - theirs).abs().max() <= BOUND * max(1.0, float(theirs.abs().max())))


def attention_of(model: LanguageModel, block: int = 0) -> LatentAttention:
    found = model.stack.blocks[block].get_submodule("branches.0.layer")
    assert isinstance(found, LatentAttention)
    return found


# ------------------------------------------------------------------------------------------------ one function


@torch.enable_grad()
def learned(model: LanguageModel, ids: Tensor, segments: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients."""
    model.zero_grad()
    logits = model(ids, segments=segments)
    (logits.log_softmax(-1) * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def forms_agree(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, segmented: bool) -> bool:
    ids = ids_of(2, 11)
    segments = torch.tensor([[1] * 5 + [2] * 4 + [0] * 2, [3] * 11]) if segmented else None
    real = torch.ones_like(ids, dtype=torch.bool) if segments is None else segments != 0
    expanded, slow = learned(model, ids, segments)
    with monkeypatch.context() as patch:
        patch.setattr(LatentAttention, "absorbs", lambda *_: True)
        absorbed, fast = learned(model, ids, segments)
    return (
        close(absorbed[real], expanded[real])
        and slow.keys() == fast.keys()
        and all(close(fast[name], slow[name]) for name in slow)
    )


@pytest.mark.parametrize("segmented", [False, True], ids=["plain", "segments"])
@pytest.mark.parametrize("kind", KINDS)
def test_absorbed_is_expanded(kind: str, segmented: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert forms_agree(model_of(KINDS[kind]), monkeypatch, segmented)


FAULTS: dict[str, Callable[[HeadMaps, Tensor], Tensor]] = {
    "another head's map": lambda maps, x: latent.by_head(maps._parts(x.dtype)[0].mT.roll(1, 0), x),
    "no gradient": lambda maps, x: latent.by_head(maps._parts(x.dtype)[0].mT.detach(), x),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_absorption_breaks_the_law(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadMaps, "absorb", FAULTS[fault])
    assert not forms_agree(model_of(LATENT), monkeypatch, False)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_add_up_in_the_absorbed_form(kind: str) -> None:
    """Fewer heads, the same latent: what is kept of a token does not shrink, what is added up is the whole."""
    model = model_of(KINDS[kind])
    layer, x = attention_of(model), torch.randn(2, 9, 36)
    parts = []
    for heads in ((0, 3), (0, 1), (1, 3)):
        shard = deepcopy(layer)
        cut_latent(shard, heads)
        assert shard.declare() == layer.declare()
        owner = deepcopy(model)
        owner.stack.blocks[0].branches[0].layer = shard  # type: ignore[union-attr,index]
        cache = Contiguous.of(owner, 2, 9)
        state = cache.step(2, 9, None, None)
        rotary = tuple(table.rows(state.positions, 9, 9, torch.float32) for table in model.stack.tables)
        parts.append(shard(x, latent.Context(state, rotary)))
    assert close(parts[1] + parts[2], parts[0])


# ------------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_keeps_the_latent_and_the_shared_key(kind: str) -> None:
    model = model_of(KINDS[kind])
    ids, cache = ids_of(2, 12), Contiguous.of(model, 2, 32)
    full = model(ids)
    parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))]
    assert close(torch.cat(parts, dim=1), full)
    again = torch.tensor([[3], [4], [5]])
    cache.reorder([1, 1, 0])
    assert close(model(again, cache=cache), model(torch.cat([ids[[1, 1, 0]], again], dim=1))[:, -1:])


def test_what_is_kept_is_no_more() -> None:
    model, cache = model_of(LATENT), Contiguous(model_of(LATENT).states, 2, 32)
    model(ids_of(2, 5), cache=cache)
    columns = {lane.keys.shape[2] for lane in cache.lanes.values()}
    assert cache.nbytes == 4 * 2 * 2 * columns.pop() * (20 + 6)  # fp32, layers, rows
    assert all(state.numbers == 20 + 6 for state in model.states)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_page_holds_it_once(dtype: torch.dtype) -> None:
    layer = replace(LATENT, heads=16, kv_rank=512, rope=spec.Rope(dim=64))
    store = Store(model_of(layer), 1 << 20, dtype)
    assert store.shape.groups[0].nbytes == 2 * 32 * (512 + 64) * dtype.itemsize  # layers, tokens


# ------------------------------------------------------------------------------------------------ served


@pytest.mark.usefixtures("unit")
@pytest.mark.skipif(native.library() is None, reason="no C++ compiler: the reference does the work")
@pytest.mark.parametrize("form", [*FORMS, "maps in int8"])
@pytest.mark.parametrize("kind", ["usual", "biased"])
def test_a_served_row_does_not_know_of_others(kind: str, form: str) -> None:
    model = model_of(KINDS[kind])
    if form == "maps in int8":
        names = [name for name in matrices(model, "int8") if name.endswith("kv_up")]
        serve_form(model, "int8", {name: Choice("int8") for name in names})
    else:
        serve_form(model, form)
    ids = ids_of(9, 1)
    assert not unlike_alone(lambda x: model(x).flatten(1), ids)


@pytest.mark.parametrize("form", FORMS)
def test_the_served_form_is_near_and_reversible(form: str) -> None:
    model = model_of(KINDS["biased"])
    ids = ids_of(2, 9)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    full = model(ids)
    serve_form(model, form)
    assert isinstance(attention_of(model).kv_up, ServedHeadMaps)
    served = model(ids)
    assert (served - full).abs().max() <= {"fp32": 1e-5, "bf16": 0.1, "int8": 0.3}[form] * full.abs().max()
    kept = dict(logical(model))
    assert list(kept) == list(before)
    name = "stack.blocks.1.branches.0.layer.kv_up.weight"
    bound = 0 if form == "fp32" else 2**-8
    assert (kept[name] - before[name]).abs().max() <= bound * before[name].abs().max()
    assign(model, name, before[name] * 1.5)
    assert not torch.equal(model(ids), served)
    assign(model, name, before[name])
    assert torch.equal(model(ids), served)
    restore(model)
    assert all(torch.equal(parameter, kept[name]) for name, parameter in model.named_parameters())
    assert attention_of(model).kv_up.sizes == (10, 14)


def test_without_a_compiler_the_references_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in FORMS:
        model, ids = serve_form(model_of(LATENT), form), ids_of(2, 4)
        logits = model(ids)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            bound = 1e-5 if form == "fp32" else 5e-3  # a last bit may move a number to the next whole one
            assert (model(ids) - logits).abs().max() <= bound * float(logits.abs().max())


# ------------------------------------------------------------------------------------------------ refusals


def test_an_adapter_on_the_maps_is_not_passed_over() -> None:
    model = model_of(LATENT)
    attention_of(model).kv_up.register_forward_hook(lambda _module, _inputs, out: out * 1.01)
    model(ids_of(1, 4))
    with pytest.raises(Refusal, match="merge it"):
        model(ids_of(1, 4), cache=Contiguous.of(model, 1, 8))


def test_the_maps_take_no_smoothing() -> None:
    model = model_of(LATENT)
    name = "stack.blocks.0.branches.0.layer.kv_up"
    with pytest.raises(ConfigError, match="no smoothing"):
        serve_form(model, "int8", {name: Choice("int8", torch.ones(20))})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"rope": spec.Rope(dim=5)}, "even"),
        ({"kv_rank": 0}, "kv_rank"),
        ({"q_rank": 0}, "q_rank"),
        ({"scale": -1.0}, "scale"),
        ({"heads": 2**30, "kv_rank": 2**20}, "matrix"),
        ({"rope": spec.Rope(dim=2, scaling=spec.DynamicScaling(factor=2.0, original=8))}, "more than 2"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        model_of(replace(LATENT, **values))


def test_every_parameter_is_initialised() -> None:
    layer = spec.Block(branches=(spec.Branch(layer=LATENT),))
    model = spec.Model(embed=spec.Embed(vocab=5, dim=8), stack=spec.Stack(dim=8, blocks=(layer,)), heads=())
    made = make(model)
    assert all(isinstance(p, nn.Parameter) and p.isfinite().all() and p.abs().max() < 2 for p in made.parameters())
