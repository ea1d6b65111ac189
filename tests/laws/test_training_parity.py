"""Law 1 for training: the loss and every gradient of every family equal the reference implementation's.

Cross-entropy over real tokens, gradients mapped through the family's table of names. Maximum absolute difference ≤ 1e-5
× max(1, largest reference value) in fp32. And packed == unpacked for every family: what one row computes does not
depend on what it is packed with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.data.batch import Batch
from openbook.models.load import load
from openbook.models.names import locate, publish
from openbook.models.registry import family_of
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.nn.routing import Routed, balance_loss, route
from openbook.train.objectives import Language
from tests.families import ALL, DECODERS, Case, each, tokens

BOUND = 1e-5
# The references of the DeepSeek line and of Llama 4 give no balance loss.
MIXTURES = [
    case
    for case in DECODERS
    if "num_experts_per_tok" in case.values and "n_routed_experts" not in case.values and "Llama4" not in case.config
]
ROWS = [case for case in ALL if case.kind != "encoder-decoder"]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def close(ours: Tensor, theirs: Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).detach().abs().max() <= BOUND * max(1.0, float(theirs.detach().abs().max())))


def own(case: Case, root: Path) -> LanguageModel:
    """The case's model, its parameters in memory of their own, dropping nothing."""
    model = load(case.folder(root)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


# ------------------------------------------------------------------------------------------------ gradients


def published_gradients(case: Case, model: LanguageModel) -> dict[str, Tensor]:
    """Our gradients under their published names and in their published layout."""
    found = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    table = family_of(case.reference().config.model_type).names(model.spec)
    places = locate(table, {name: gradient.shape for name, gradient in found.items()})
    return {name: make() for name, make in publish(places, found).items()}


def reference_gradients(case: Case, expected: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """The reference's gradients under the names, and in the layout, that it is published with; 0 where it has none."""
    every = case.reference().named_parameters(remove_duplicate=False)  # a tied one under all its names
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in every}
    published = case.published(found)
    return {name: published.get(name) for name in expected}


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed, so that the gradients are of the size of the bound's one."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def backward_both(case: Case, model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Backward through both on the same padded batch; the two losses."""
    ids = tokens(case, 3, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    reference = case.reference()
    reference.zero_grad()
    if case.kind == "encoder-decoder":
        target = tokens(case, 3, 7, seed=1)
        goal = tokens(case, 3, 7, seed=2)
        theirs = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits
        ours = model(target, source=ids, source_segments=mask)
    else:
        goal = tokens(case, 3, 12, seed=2).masked_fill(mask == 0, -100)
        marks = case.marks(ids)
        more = {} if marks is None else {"global_attention_mask": marks}
        theirs = reference(input_ids=ids, attention_mask=mask, **more).logits
        ours = model(ids, segments=mask, marks=marks)
    losses = loss_of(ours, goal), loss_of(theirs, goal)
    for loss in losses:
        loss.backward()
    return losses


def gradients_agree(case: Case, model: LanguageModel) -> bool:
    ours, theirs = backward_both(case, model)
    found = published_gradients(case, model)
    fixed = {name for name, _ in case.reference().named_buffers()}  # what the reference does not train
    found = {name: gradient for name, gradient in found.items() if name not in fixed}
    expected = reference_gradients(case, found)
    missing = [name for name, gradient in expected.items() if gradient is None]
    assert not missing, missing
    return close(ours, theirs) and all(close(found[name], expected[name]) for name in found)


@each(ALL)
def test_gradients_equal_the_reference(case: Case, root: Path) -> None:
    assert gradients_agree(case, own(case, root))


@pytest.mark.parametrize("case", [c for c in ALL if c.name in ("llama", "bert", "t5", "mamba")], ids=lambda c: c.name)
def test_a_gradient_cut_off_breaks_the_law(case: Case, root: Path) -> None:
    """A forward pass can be right while a weight learns nothing."""
    model = own(case, root)
    layer = model.stack.blocks[-1].get_submodule("branches.0.layer")
    layer.register_forward_hook(lambda _module, _inputs, out: out.detach() + 0 * out)
    assert not gradients_agree(case, model)


# ------------------------------------------------------------------------------------------------ balance


@each(MIXTURES)
def test_balance_loss_equals_the_reference(case: Case, root: Path) -> None:
    model, reference = own(case, root), case.reference()
    ids = tokens(case, 3, 12)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    for attention in (None, mask):
        reference.zero_grad()
        model.zero_grad()
        theirs = reference(input_ids=ids, attention_mask=attention, output_router_logits=True, labels=ids).aux_loss
        routers: list[Routed] = []
        model(ids, segments=attention, routers=routers)
        real = None if attention is None else attention.flatten()
        ours = balance_loss(routers, real)
        assert close(ours, theirs)
        ours.backward()
        theirs.backward()
        found = {
            n: g
            for n, g in published_gradients(case, model).items()
            if n.endswith((".gate.weight", ".router.weight", ".router.layer.weight"))
        }
        expected = reference_gradients(case, found)
        assert len(found) == len(routers)
        assert all(close(found[name], expected[name]) for name in found)


SWITCH = [case for case in ALL if case.name == "switch"]


@each(SWITCH)
def test_losses_of_switch_equal_the_reference(case: Case, root: Path) -> None:
    """Balance and z-loss, each of either side. One row: the reference balances each row by itself."""
    model, ids = own(case, root).train(), tokens(case, 1, 12)
    for module in model.modules():
        if isinstance(module, torch.nn.Module):
            module.training = False
    model.training = True  # the objective's terms of training, without dropout, noise and capacity
    theirs = case.reference()(input_ids=ids, decoder_input_ids=ids[:, :7], labels=ids[:, :7], output_router_logits=True)
    batch = Batch(ids=ids[:, :7], source=ids, targets={"language": ids[:, :7]})
    terms, counts = Language()(model, batch), Language().counts(batch)
    for ours, expected in {
        "balance": theirs.decoder_aux_loss,
        "router_z": theirs.decoder_z_loss,
        "source_balance": theirs.encoder_aux_loss,
        "source_router_z": theirs.encoder_z_loss,
    }.items():
        assert close(terms[ours].total / counts[ours], expected)
        assert terms[ours].weight == pytest.approx(0.03 if "router_z" in ours else 0.04)


def routed(*layers: Tensor, top_k: int = 2) -> list[Routed]:
    moe = spec.MoE(experts=4, top_k=top_k, expert=spec.MLP(hidden=1))
    return [route(moe, logits) for logits in layers]


def test_balance_loss_of_uniform_routing_is_top_k() -> None:
    logits = [torch.eye(4).repeat(5, 1) * 1e-3 for _ in range(2)]
    assert float(balance_loss(routed(*logits, top_k=1))) == pytest.approx(1.0, abs=1e-3)
    alone = torch.tensor([[9.0, 0, 0, 0]]).repeat(20, 1)
    assert float(balance_loss(routed(alone, top_k=1))) > 3.9


def test_balance_loss_ignores_padding() -> None:
    layers = [torch.randn(10, 4) for _ in range(3)]
    real = torch.tensor([1] * 6 + [0] * 4)
    whole, changed = routed(*layers), routed(*(torch.cat([layer[:6], torch.randn(4, 4) * 5]) for layer in layers))
    assert close(balance_loss(whole, real), balance_loss(changed, real))
    assert not close(balance_loss(whole), balance_loss(changed))
    assert close(balance_loss(whole, real), balance_loss(routed(*(layer[:6] for layer in layers))))


# ------------------------------------------------------------------------------------------------ packing


def packed(case: Case, lengths: tuple[int, ...], extra: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Texts, the same in one row with `extra` padding at the end, and its segments."""
    texts = [tokens(case, 1, count, seed=count) for count in lengths]
    row = torch.cat([*texts, torch.zeros(1, extra, dtype=torch.int64)], dim=1)
    numbers = [number for number, count in enumerate(lengths, start=1) for _ in range(count)]
    return texts, row, torch.tensor([numbers + [0] * extra])


def learn(model: LanguageModel, runs: list[dict[str, Any]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logits of each run and the summed gradients of a loss over all their real tokens."""
    model.zero_grad()
    found, total = [], torch.zeros(())
    for run in runs:
        ids = run.pop("ids")
        logits = model(ids, **run)
        real = torch.ones_like(ids, dtype=torch.bool) if run.get("segments") is None else run["segments"] != 0
        found.append(logits[real].detach())
        total = total + logits[real].log_softmax(-1).gather(1, ids[real].unsqueeze(1)).sum()
    total.backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", [(7, 4), (1, 6, 2, 5), (11,)], ids=str)
@each(ROWS)
def test_packed_equals_unpacked(case: Case, lengths: tuple[int, ...], root: Path) -> None:
    model = own(case, root)
    texts, row, segments = packed(case, lengths, extra=3)
    alone, slow = learn(model, [{"ids": text} for text in texts])
    together, fast = learn(model, [{"ids": row, "segments": segments}])
    assert close(together[0], torch.cat(alone))
    assert fast.keys() == slow.keys()
    assert all(close(fast[name], slow[name]) for name in slow)


@pytest.mark.parametrize("case", [c for c in ALL if c not in ROWS], ids=lambda case: case.name)
def test_packed_pairs_equal_unpacked(case: Case, root: Path) -> None:
    model = own(case, root)
    texts, row, segments = packed(case, (7, 4, 3), extra=2)
    sources, source, source_segments = packed(case, (2, 9, 5), extra=4)
    alone, slow = learn(model, [{"ids": t, "source": s} for t, s in zip(texts, sources, strict=True)])
    run = {"ids": row, "segments": segments, "source": source, "source_segments": source_segments}
    together, fast = learn(model, [run])
    assert close(together[0], torch.cat(alone))
    assert all(close(fast[name], slow[name]) for name in slow)


@torch.no_grad()
@each(ROWS)
def test_what_stands_before_leaks_without_segments(case: Case, root: Path) -> None:
    """The seeded fault: one segment over two texts. And with segments, the first text may be any other."""
    model = own(case, root)
    texts, row, segments = packed(case, (7, 4), extra=0)
    alone = model(texts[1])
    assert not close(model(row)[:, 7:], alone)
    other = row.clone()
    other[:, :7] = tokens(case, 1, 7, seed=99)
    assert not torch.equal(other, row)
    assert close(model(other, segments=segments)[:, 7:], model(row, segments=segments)[:, 7:])


@torch.no_grad()
@each(ROWS)
def test_padding_before_within_and_after(case: Case, root: Path) -> None:
    """Padding may stand anywhere: it changes nothing, whatever ids it holds."""
    model = own(case, root)
    text = tokens(case, 1, 6, seed=4)
    expected = model(text)
    for before, after in ((2, 0), (0, 3), (1, 2)):
        ids = torch.cat([tokens(case, 1, before, 8), text, tokens(case, 1, after, 9)], dim=1)
        segments = torch.tensor([[0] * before + [1] * 6 + [0] * after])
        assert close(model(ids, segments=segments)[:, before : before + 6], expected)
