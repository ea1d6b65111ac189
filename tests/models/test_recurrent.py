"""Recurrent models as folders: saved and loaded, described, in int8, embedding; and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from openbook.adapters.lora import Bank
from openbook.errors import OpenbookError, OpenbookWarning
from openbook.generate.encode import classify, embed
from openbook.generate.engine import Engine
from openbook.generate.loop import generate_ids
from openbook.generate.sampling import Sampling
from openbook.generate.settings import Settings
from openbook.models.describe import describe
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.nn.plain import to_plain
from openbook.nn.serving import restore, serve_form
from openbook.train.objectives import Classification
from tests.nn.recurrent import ALL, DIM, bilm, random, tokens

MODELS = {**ALL, "bilm": bilm()}


def kept(model: LanguageModel, folder: Path) -> LanguageModel:
    with pytest.warns(OpenbookWarning, match="No published family"):
        save(model, folder)
    return load(folder)


def said(model: LanguageModel) -> torch.Tensor:
    ids = tokens(2, 7)
    return model(ids, source=tokens(2, 5, seed=1) if model.source is not None else None).detach()


@pytest.mark.parametrize("name", MODELS)
def test_folders_round_trip(name: str, tmp_path: Path) -> None:
    model = random(MODELS[name], seed=6)
    again = kept(model, tmp_path / "folder")
    assert again.spec == model.spec
    held = again.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(said(again), said(model))


@pytest.mark.parametrize("name", MODELS)
def test_descriptions_count_what_is_built(name: str) -> None:
    model = MODELS[name]
    told = describe({"model_type": "openbook", "spec": to_plain(model)}, context=10)
    built = make(model)
    assert told.total == sum(p.numel() for p in built.parameters())
    assert told.page()
    assert told.training.total > 4 * told.total
    if model.causal:
        kept_of = [state for state in built.states if hasattr(state, "shapes")]
        assert told.state.sequence == sum(torch.Size(shape).numel() for state in kept_of for shape in state.shapes)


def test_operations_of_a_decoder_are_counted() -> None:
    """Bahdanau et al. 2015 appendix A: per target token the cell, the query, scores and mixing over S, the readout."""
    told = describe({"model_type": "openbook", "spec": to_plain(MODELS["bahdanau"])}, context=10)
    hidden, wide, words = DIM + 3, DIM, MODELS["bahdanau"].embed.vocab
    cell = 3 * hidden * (2 * wide) + 3 * hidden * hidden
    products = cell + hidden * hidden + hidden + 2 * DIM * (hidden + 2 * DIM) + words * DIM
    assert told.work.products == 2 * products
    assert told.work.attention_last == 4 * ((hidden + DIM) // 2) * 10
    assert told.source_work is not None
    one = 2 * 2 * (3 * DIM // 2 * DIM + 3 * (DIM // 2) ** 2)  # two layers, two ways
    assert told.source_work.products == 2 * (one + hidden * DIM)


@pytest.mark.parametrize("name", ["lstm", "lstm-projected", "luong-general-fed"])
@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
def test_forms_for_serving_are_near_and_taken_back(name: str, form: str) -> None:
    model = random(MODELS[name], seed=6, spread=0.2)
    whole = said(model)
    with torch.no_grad():
        other = said(serve_form(model, form))
    bound = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}[form]
    assert 0 < (other - whole).abs().max() <= bound * max(1.0, float(whole.abs().max())) or form == "fp32"
    restore(model)
    if form == "fp32":
        assert torch.equal(said(model), whole)


def test_a_bilm_embeds_each_text_alike_in_any_batch() -> None:
    model = serve_form(random(bilm(), seed=6), "fp32")
    texts = [tokens(1, count, seed=count)[0].tolist() for count in (3, 9, 5, 9)]
    together, alone = embed(model, texts), [embed(model, [text])[0] for text in texts]
    assert together.shape == (4, 2 * DIM)
    torch.testing.assert_close(together, torch.stack(alone))


def test_a_mix_is_what_a_classifier_learns_through() -> None:
    """Peters et al. 2018 §3.2: weights and scale are learned with the task; `classify` reads what was trained."""
    model = random(bilm(more=(spec.Classes(count=3, over="tokens"),)), seed=6)
    from openbook.data.batch import Batch

    batch = Batch(ids=tokens(2, 6), targets={"classes": torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)})
    term = Classification()(model, batch)["classes"]
    term.total.backward()
    for name in ("heads.mix.weights", "heads.mix.scale"):
        assert bool((model.get_parameter(name).grad != 0).all())
    logits = torch.stack(classify(model, batch.ids.tolist()))
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets["classes"].flatten(), reduction="sum")
    torch.testing.assert_close(term.total.detach(), expected)


def test_what_reads_both_ways_does_not_write() -> None:
    model = random(bilm())
    with pytest.raises(OpenbookError):
        generate_ids(model, [[3, 4]], Sampling(max_tokens=2))
    with pytest.raises(OpenbookError):
        Engine(serve_form(model, "fp32"), Settings(memory=1 << 20)).generate([[3, 4]], Sampling(max_tokens=2))


@pytest.mark.parametrize(("module", "right"), [("state", False), ("input", True)])
def test_an_adapter_inside_a_recurrence_is_refused(module: str, right: bool, tmp_path: Path) -> None:
    """Its rows would be those of one token, not of the step."""
    model = serve_form(random(MODELS["lstm"]), "fp32")
    model.config = {"model_type": "openbook"}
    path = f"stack.blocks.0.branches.0.layer.ahead.{module}"
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [path]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    sizes = {"A": (2, DIM), "B": (4 * DIM, 2)}
    pairs = {f"base_model.model.{path}.lora_{end}.weight": torch.randn(size) for end, size in sizes.items()}
    save_file(pairs, tmp_path / "adapter_model.safetensors")
    bank = Bank(model)
    if not right:
        with pytest.raises(OpenbookError, match="one token at a time"):
            bank.load("one", tmp_path)
        return
    bank.load("one", tmp_path)
    with torch.no_grad(), bank.using([("one", slice(None))]):
        changed = said(model)
    assert (changed - said(model)).abs().max() > 1e-3
