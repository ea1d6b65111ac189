"""What training does about experts: capacities and picks against loops, loads, corrections, what is shown."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.errors import ConfigError, Refusal
from openbook.generate.loop import generate_ids
from openbook.generate.sampling import Sampling
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.routing import Routed, pick, route, within_capacity, z_loss
from openbook.nn.serving import serve_form
from openbook.train.display import Plain, View
from openbook.train.experts import ExpertPart, correct, utilisation, with_experts
from openbook.train.heldout import evaluate
from openbook.train.loop import advance, fit
from openbook.train.metrics import read_journal
from openbook.train.objectives import Language
from openbook.train.speed import recompute_blocks
from tests.train.tiny import Held, tiny_model, tiny_run, tiny_spec


def moe(**more: object) -> spec.MoE:
    return spec.MoE(experts=5, top_k=2, expert=spec.MLP(hidden=3), **more)  # type: ignore[arg-type]


def numbers(tokens: int = 40) -> tuple[Tensor, Tensor]:
    """Router logits that prefer the first expert, and which tokens are real."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, 5, generator=generator)
    logits[:, 0] += 1
    return logits, torch.rand(tokens, generator=generator) < 0.8


@pytest.mark.parametrize("capacity", [0.3, 0.8, 1.0, 1.7, 9.0])
def test_a_full_expert_takes_no_more(capacity: float) -> None:
    logits, real = numbers()
    layer = moe(capacity=capacity)
    routed = within_capacity(layer, route(layer, logits), real)
    room = [math.ceil(capacity * 2 * int(real.sum()) / 5)] * 5
    kept = torch.zeros_like(routed.chosen, dtype=torch.bool)
    for choice in range(2):
        for token in range(len(logits)):
            expert = int(routed.chosen[token, choice])
            if real[token] and room[expert] > 0:
                room[expert] -= 1
                kept[token, choice] = True
    assert routed.kept is not None
    assert torch.equal(routed.kept, kept)
    lost = 2 * int(real.sum()) - int(kept.sum())
    assert (lost == 0) == (capacity == 9.0)
    assert routed.loads(real)[-2:].tolist() == [2.0 * int(real.sum()), float(lost)]


def test_experts_pick_the_tokens_they_like_best() -> None:
    logits, real = numbers()
    picked = pick(moe(), logits, real)
    most = math.ceil(int(real.sum()) * 2 / 5)
    scores = logits.softmax(-1)
    for expert in range(5):
        order = [t for t in scores[:, expert].argsort(descending=True).tolist() if real[t]][:most]
        taken = picked.weights[expert] > 0
        assert picked.tokens[expert][taken].tolist() == order
        assert torch.equal(picked.weights[expert][taken], scores[order, expert])
    assert picked.loads(real)[:5].tolist() == [float(most)] * 5  # even, whatever the logits
    covered = set(picked.tokens[picked.weights > 0].tolist())
    assert picked.loads(real)[-1] == int(real.sum()) - len(covered)


def test_dropped_tokens_pass_by() -> None:
    """Without room for anyone the mixture says nothing; with room for all it says what it says without a limit."""
    models = [tiny_model(experts=4, moe={"capacity": capacity}).train() for capacity in (1e-9, 50.0, None)]
    ids = torch.randint(1, 60, (2, 9))
    none, all_, free = (model(ids) for model in models)
    assert torch.equal(all_, free)
    assert not torch.allclose(none, free)
    assert torch.equal(models[0].eval()(ids), free)  # never at inference


def test_the_z_loss_is_that_of_st_moe() -> None:
    logits, real = numbers()
    other = logits * 2
    layers = [route(moe(), one) for one in (logits, other)]
    by_hand = sum(float(torch.logsumexp(one[real], -1).square().sum()) for one in (logits, other)) / 2
    assert float(z_loss(layers, real)) == pytest.approx(by_hand)


def test_a_correction_evens_the_loads() -> None:
    logits, real = numbers(400)
    correction = torch.zeros(5)

    def busiest() -> float:
        counts = route(moe(), logits, correction).loads(real)[:-2]
        return float(counts.max() / counts.mean())

    before = busiest()
    for _ in range(300):
        counts = route(moe(), logits, correction).loads(real)[:-2]
        correction += 0.003 * (counts.mean() - counts).sign()
    assert before > 1.5
    assert busiest() < 1.1


def test_the_correction_moves_by_the_sign() -> None:
    model = tiny_model(experts=4, routing={"correction": True})
    name = "stack.blocks.1.branches.1.layer"
    correct(model, {name: [10.0, 2.0, 6.0, 6.0, 24.0, 0.0]}, 0.5)
    assert model.get_parameter(f"{name}.correction").tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert model.get_parameter("stack.blocks.0.branches.1.layer.correction").tolist() == [0.0] * 4


@pytest.mark.parametrize("order", [(0, 1, 1), (1, 0), (1, 0, 1, 1)])
def test_loads_are_those_of_the_experts_that_decided(order: tuple[int, ...]) -> None:
    """Blocks that run again, and in another order than they are held in."""
    model = tiny_model(experts=4)
    blocks = list(model.spec.stack.blocks)
    few = replace(blocks[1].branches[1].layer, experts=3)
    blocks[1] = replace(blocks[1], branches=(blocks[1].branches[0], replace(blocks[1].branches[1], layer=few)))
    model = make(replace(model.spec, stack=replace(model.spec.stack, blocks=tuple(blocks), order=order)), seed=1)
    run = tiny_run(model=model, steps=1)
    run.model.train()
    batch = run.rows.batch(0, 8)
    found = Language()(model, batch)["balance"].loads
    assert batch.segments is not None
    real = int((batch.segments != 0).sum())
    for number, experts in enumerate((4, 3)):
        counts = found[f"stack.blocks.{number}.branches.1.layer"]
        assert len(counts) == experts + 2
        assert counts[:-2].sum() == counts[-2] == 2 * real * order.count(number)
    assert "experts" in advance(run)


def test_utilisation() -> None:
    even, one = [5.0, 5, 5, 5, 20, 0], [20.0, 0, 0, 0, 20, 8]
    assert utilisation({"a": even}) == {"least": 1.0, "most": 1.0, "entropy": pytest.approx(1.0), "dropped": 0.0}
    assert utilisation({"a": even, "b": one}) == {"least": 0, "most": 4, "entropy": pytest.approx(0.5), "dropped": 0.2}
    assert utilisation({}) == {}


def test_the_journal_and_the_display_tell(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, experts=4, steps=3, moe={"capacity": 0.5})
    stream = io.StringIO()
    run.watchers = [Plain(View(steps=3), stream, every=0.0)]
    fit(run)
    record = read_journal(tmp_path / "metrics.jsonl")[0]["experts"]
    assert 0 <= record["least"] < 1 < record["most"]
    assert 0 < record["entropy"] < 1
    assert 0.3 < record["dropped"] < 0.7
    assert "of a fair share" in stream.getvalue()
    assert "dropped" in stream.getvalue()


def test_experts_that_choose_are_trained_and_measured_but_not_served() -> None:
    run = tiny_run(experts=4, steps=3, routing={"choice": "expert"})
    fit(run)
    assert "loss" in evaluate(run.model, Language(), Held())
    run.model.eval()
    for serve in (
        lambda: generate_ids(run.model, [[1, 2]], Sampling(max_tokens=2)),
        lambda: serve_form(run.model, "fp32"),
    ):
        with pytest.raises(Refusal, match="not served"):
            serve()


def test_a_recipe_says_how_experts_are_trained() -> None:
    plain = tiny_spec(experts=4)
    part = ExpertPart(balance=0.0, z_loss=0.1, jitter=0.2, capacity=1.5, correction=0.001)
    layer = with_experts(plain, part).stack.blocks[0].branches[1].layer
    assert isinstance(layer, spec.MoE)
    assert (layer.balance, layer.z_loss, layer.jitter, layer.capacity) == (0.0, 0.1, 0.2, 1.5)
    kept = with_experts(plain, part, whole=False).stack.blocks[0].branches[1].layer
    assert isinstance(kept, spec.MoE)
    assert (kept.balance, kept.z_loss, kept.capacity, kept.routing.correction) == (0.01, 0.0, None, True)
    assert with_experts(plain, ExpertPart()) == plain
    with pytest.raises(ConfigError, match="has none"):
        with_experts(tiny_spec(), part)
    with pytest.raises(ConfigError, match=r"experts\.correction"):
        ExpertPart(correction=-1.0)


def test_mixtures_that_are_balanced_unlike_are_refused() -> None:
    """One loss balances all of a stack: a block that asks for another weight would ask in vain."""
    model = tiny_spec(experts=4)
    first, *rest = model.stack.blocks
    attention, ffn = first.branches
    assert isinstance(ffn.layer, spec.MoE)
    for name in ("balance", "z_loss"):
        other = replace(first, branches=(attention, replace(ffn, layer=replace(ffn.layer, **{name: 0.7}))))
        with pytest.raises(ConfigError, match=r"balanced alike.*0\.7"):
            build(replace(model, stack=replace(model.stack, blocks=(other, *rest))))


def test_experts_that_choose_know_no_groups() -> None:
    with pytest.raises(ConfigError, match="no groups"):
        build(tiny_spec(experts=4, routing={"choice": "expert", "correction": True}))


def test_all_routers_decide_in_fp32() -> None:
    model = tiny_model(experts=4)
    model.compute_dtype = torch.bfloat16
    routers: list[Routed] = []
    model(torch.ones(1, 3, dtype=torch.int64), routers=routers)  # type: ignore[arg-type]
    assert {tensor.dtype for routed in routers for tensor in (routed.logits, routed.weights)} == {torch.float32}


WAYS: dict[str, dict[str, Any]] = {
    "capacity": {"moe": {"capacity": 0.7, "z_loss": 0.1}},
    "expert choice": {"routing": {"choice": "expert"}},
    "groups": {
        "routing": {"correction": True, "score": "sigmoid", "groups": 2, "top_groups": 1},
        "moe": {"shared": spec.MLP(hidden=8), "shared_gate": True},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("values", WAYS.values(), ids=WAYS)
def test_compiled_or_recomputed_blocks_train_alike(values: dict[str, Any]) -> None:
    """What routers decided comes out of a traced block, and once of one that is run again for the backward pass."""
    plain, compiled, again = (tiny_run(experts=4, **values) for _ in range(3))
    for block in compiled.model.stack.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    recompute_blocks(again.model)
    for run in (plain, compiled, again):
        run.model.train()
    for _ in range(2):
        one, two, three = (advance(run) for run in (plain, compiled, again))
        assert one["experts"] == two["experts"] == three["experts"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6) == three["loss"]
        assert one["norm"] == pytest.approx(two["norm"], rel=1e-5) == three["norm"]
