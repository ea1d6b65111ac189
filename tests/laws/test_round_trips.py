"""Law 4, models: load → save → load gives the same model, to and from the reference library's folders."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch

from openbook.errors import OpenbookWarning
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.models.registry import read, say
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.nn.plain import from_plain, to_plain
from tests.families import ALL, Case, each, tokens


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def same_weights(a: LanguageModel, b: LanguageModel) -> bool:
    """Bit for bit."""
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@each(ALL)
def test_saved_folder_loads_in_both(case: Case, root: Path, tmp_path: Path) -> None:
    import transformers

    model = load(case.folder(root))
    save(model, tmp_path / "out", shard=40_000)
    again = load(tmp_path / "out")
    assert again.spec == model.spec
    assert same_weights(model, again)
    how = {"attn_implementation": case.attention, "experts_implementation": "eager"}
    theirs = getattr(transformers, case.architecture).from_pretrained(tmp_path / "out", **how)
    original = case.reference().state_dict()
    loaded = theirs.state_dict()
    used = original.keys() - set(case.idle)
    assert all(torch.equal(loaded[name].float(), original[name].float()) for name in used)
    with torch.no_grad():
        ids = tokens(case, 2, 9)
        if case.kind == "encoder-decoder":
            ours, reference = model(ids, source=ids), theirs(input_ids=ids, decoder_input_ids=ids).logits
        else:
            ours, reference = model(ids), theirs(ids).logits
        assert (ours - reference).abs().max() <= 1e-5 * max(1.0, float(reference.abs().max()))


def test_a_changed_weight_breaks_the_law(root: Path) -> None:
    model, other = load(ALL[0].folder(root)), load(ALL[0].folder(root))
    assert same_weights(model, other)
    with torch.no_grad():
        other.embed.tokens.weight[0, 0] += 1e-6
    assert not same_weights(model, other)


@each(ALL)
def test_spec_round_trips(case: Case, root: Path) -> None:
    config = json.loads((case.folder(root) / "config.json").read_text())
    family, model = read(config)
    said_by, said = say(model, family.model_type, config)
    assert said_by.model_type == family.model_type
    assert read(said)[1] == model
    assert from_plain(json.loads(json.dumps(to_plain(model))), spec.Model) == model


def test_what_no_family_says_is_saved_as_it_is(tmp_path: Path) -> None:
    norm = spec.Norm(eps=1e-4)
    attention = spec.Attention(heads=4, kv_heads=2, head_dim=6, rope=spec.Rope(dim=4), softcap=9.0)
    mixed = spec.Block(
        branches=(
            spec.Branch(layer=attention, norm=norm),
            spec.Branch(layer=spec.Selective(inner=12, rank=2), norm=norm),
            spec.Branch(layer=spec.Structured(state=4, start="inv"), norm=norm),
            spec.Branch(layer=spec.GatedDelta(heads=1, value_heads=2, key_dim=3, value_dim=4, norm=norm), norm=norm),
        )
    )
    parallel = spec.Block(
        branches=(
            spec.Branch(layer=attention, place="plain"),
            spec.Branch(layer=spec.MLP(hidden=20), place="plain", norm=norm),
        ),
        parallel=True,
        norm=norm,
    )
    value = spec.Model(
        embed=spec.Embed(vocab=50, dim=24),
        stack=spec.Stack(dim=24, blocks=(mixed, parallel, mixed)),
        heads=(spec.Language(tied=False),),
    )
    model = make(value, seed=1)
    with pytest.warns(OpenbookWarning, match="No published family"):
        save(model, tmp_path / "odd")
    again = load(tmp_path / "odd")
    assert again.spec == value
    assert same_weights(model, again)


def test_a_difference_between_layers_is_not_lost(root: Path) -> None:
    """A spec whose third layer differs cannot be said by a family whose layers are all alike."""
    _, model = read(json.loads((ALL[0].folder(root) / "config.json").read_text()))
    block = model.stack.blocks[2]
    layer = block.branches[0].layer
    assert isinstance(layer, spec.Attention)
    odd = dataclasses.replace(block.branches[0], layer=dataclasses.replace(layer, scale=0.1))
    blocks = (*model.stack.blocks[:2], dataclasses.replace(block, branches=(odd, block.branches[1])))
    changed = dataclasses.replace(model, stack=dataclasses.replace(model.stack, blocks=blocks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpenbookWarning)
        family, said = say(changed, "llama")
    assert family.model_type == "openbook"
    assert read(said)[1] == changed
