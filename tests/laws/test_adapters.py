"""Law 1 for adapters: the numbers of the reference library; and law 3: an adapter beside others is an adapter alone."""

# ruff: noqa: ARG005
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openbook.adapters.folder import CONFIG, WEIGHTS, Settings, read
from openbook.adapters.lora import Bank
from openbook.adapters.merge import merge, unmerge
from openbook.errors import CheckpointError, ConfigError, InputError, OpenbookWarning, Refusal
from openbook.models.load import load
from openbook.models.make import fuse
from openbook.nn.linear import Linear
from openbook.nn.model import LanguageModel
from openbook.nn.packed import Packed
from openbook.nn.serving import assign, logical, serve_form
from tests.families import tokens
from tests.laws.adapters import KINDS, Kind

BOUND = 1e-5
EVERY = slice(None)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models and adapters."""
    return tmp_path_factory.mktemp("adapters")


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The difference, in the law's units: at most 1e-5."""
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())))


def run(model: LanguageModel, kind: Kind, seed: int = 0) -> torch.Tensor:
    ids = tokens(kind.base, 3, 11, seed)
    if kind.base.kind == "encoder-decoder":
        return model(tokens(kind.base, 3, 7, seed + 1), source=ids)
    return model(ids)


def expected(kind: Kind, seed: int = 0) -> torch.Tensor:
    ids = tokens(kind.base, 3, 11, seed)
    more = {"decoder_input_ids": tokens(kind.base, 3, 7, seed + 1)} if kind.base.kind == "encoder-decoder" else {}
    return kind.reference()(input_ids=ids, **more).logits


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@torch.no_grad()
def test_an_adapter_gives_the_numbers_of_the_reference(kind: Kind, root: Path) -> None:
    model = load(kind.base.folder(root))
    plain = run(model, kind)
    names = list(dict(model.named_parameters()))
    theirs = expected(kind)
    bank = Bank(model)
    bank.load("a", kind.folder(root))
    assert torch.equal(run(model, kind), plain) or kind.base.kind != "decoder"  # nothing set: the base
    with bank.using([("a", EVERY)], source=[("a", EVERY)]):
        ours = run(model, kind)
    assert apart(theirs, plain) > 1e-2
    assert apart(ours, theirs) <= BOUND
    assert list(dict(model.named_parameters())) == names
    bank.unload("a")
    assert torch.equal(run(model, kind), plain)
    assert model.rewrites == []
    merged = merge(model, kind.folder(root))
    assert model.rewrites == [merged.rewrite]
    assert apart(run(model, kind), theirs) <= BOUND
    unmerge(model, merged)
    assert torch.equal(run(model, kind), plain)
    assert model.rewrites == []


def of(*names: str) -> list[Kind]:
    """Kinds by name."""
    return [kind for kind in KINDS if kind.name in names]


def alone(model: LanguageModel, bank: Bank, ids: torch.Tensor, chosen: list[str | None]) -> torch.Tensor:
    """Each row of ids in a pass of its own, with its adapter."""
    parts = []
    for row, name in zip(ids, chosen, strict=True):
        with bank.using([] if name is None else [(name, EVERY)]):
            parts.append(model(row.unsqueeze(0)))
    return torch.cat(parts)


def grouped(chosen: list[str | None], count: int) -> list[tuple[str, torch.Tensor]]:
    """For `using`: the tokens of each adapter, in rows of `count` tokens."""
    return [
        (name, torch.cat([torch.arange(i * count, (i + 1) * count) for i, one in enumerate(chosen) if one == name]))
        for name in dict.fromkeys(one for one in chosen if one is not None)
    ]


MIXES = [
    of("llama", "llama-all-rs", "llama-patterns"),
    of("llama-bias", "llama-lora-bias", "llama-dora"),
    of("gpt2", "gpt2-dora-bias", "gpt2-bare"),
]


@pytest.mark.parametrize("kinds", MIXES, ids=lambda kinds: kinds[0].base.name)
@torch.no_grad()
def test_several_together_are_each_alone(kinds: list[Kind], root: Path) -> None:
    model = load(kinds[0].base.folder(root))
    bank = Bank(model)
    for kind in kinds:
        bank.load(kind.name, kind.folder(root))
    chosen = [kinds[0].name, None, kinds[1].name, kinds[2].name, kinds[0].name, None]
    ids = tokens(kinds[0].base, len(chosen), 9)
    with bank.using(grouped(chosen, 9)):
        together = model(ids)
    each = alone(model, bank, ids, chosen)
    assert apart(together, each) <= BOUND
    with bank.using(grouped(chosen[::-1], 9)):  # seeded fault: a row with another's adapter is found out
        assert apart(model(ids), each) > 1e-2
    before = together[4]
    bank.unload(kinds[1].name)  # the others are not disturbed
    with bank.using([(kinds[0].name, torch.arange(36, 45)), (kinds[2].name, slice(27, 36))]):
        after = model(ids)
    assert torch.allclose(after[4], before, atol=1e-5)
    assert torch.allclose(after[3], each[3], atol=1e-5)
    for name in list(bank.names):
        bank.unload(name)
    assert torch.equal(model(ids), load(kinds[0].base.folder(root))(ids))


@torch.no_grad()
def test_fused_maps_are_adapted_and_return(root: Path) -> None:
    kind = of("llama-all-rs")[0]
    model = fuse(load(kind.base.folder(root)))
    plain = run(model, kind)
    bank = Bank(model)
    bank.load("a", kind.folder(root))
    with bank.using([("a", EVERY)]):
        assert apart(run(model, kind), expected(kind)) <= BOUND
    bank.unload("a")
    assert torch.equal(run(model, kind), plain)
    merged = merge(model, kind.folder(root))
    assert apart(run(model, kind), expected(kind)) <= BOUND
    unmerge(model, merged)
    assert torch.equal(run(model, kind), plain)


@torch.no_grad()
def test_pushed_weights_and_dora(root: Path) -> None:
    """DoRA's lengths are those of the base: after a push they are computed again."""
    kind = of("llama-dora")[0]
    model = load(kind.base.folder(root))
    bank = Bank(model)
    bank.load("a", kind.folder(root))
    weight = model.get_parameter("stack.blocks.1.branches.0.layer.q.weight")
    weight.mul_(torch.linspace(0.5, 2.0, weight.shape[1]))
    fresh = Bank(copied := load(kind.base.folder(root)))
    copied.get_parameter("stack.blocks.1.branches.0.layer.q.weight").copy_(weight)
    fresh.load("a", kind.folder(root))
    with bank.using([("a", EVERY)]), fresh.using([("a", EVERY)]):
        assert apart(run(model, kind), run(copied, kind)) > BOUND
        bank.refresh()
        assert torch.equal(run(model, kind), run(copied, kind))


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kinds", MIXES, ids=lambda kinds: kinds[0].base.name)
@torch.no_grad()
def test_in_the_form_for_serving_rows_are_exact(kinds: list[Kind], form: str, root: Path) -> None:
    """Bit for bit: what a row gets from an adapted map does not depend on the rows beside it."""
    model = serve_form(load(kinds[0].base.folder(root)), form)
    bank = Bank(model)
    for kind in kinds:
        bank.load(kind.name, kind.folder(root))
    adapted = [model.get_submodule(path) for path in bank.paths]
    for module in [one for one in adapted if isinstance(one, Packed | Linear)]:
        x = torch.randn(23, module.shape[1])
        shuffled = torch.randperm(23)
        rows = {kind.name: shuffled[i * 6 : i * 6 + 2 * i + 1] for i, kind in enumerate(kinds)}
        with bank.using(list(rows.items())):
            together = module(x)
        assert torch.equal(together[shuffled[18:]], module(x)[shuffled[18:]])
        for name, index in rows.items():
            for row in index:
                with bank.using([(name, EVERY)]):
                    assert torch.equal(module(x[row : row + 1])[0], together[row])


@torch.no_grad()
def test_the_maps_of_latent_attention_are_merged(root: Path) -> None:
    """Served, they are no linear map that an adapter could stand on: it is refused, and merged it counts."""
    kind = of("latent")[0]
    model = load(kind.base.folder(root))
    with pytest.raises(Refusal, match=r"kv_up.*no linear map of its own"):
        Bank(serve_form(load(kind.base.folder(root)), "fp32")).load("a", kind.folder(root))
    merge(model, kind.folder(root))
    assert apart(run(model, kind), expected(kind)) <= BOUND
    assert apart(run(serve_form(model, "fp32"), kind), expected(kind)) <= BOUND


@torch.no_grad()
@pytest.mark.parametrize("served", [False, True], ids=["plain", "served"])
def test_the_step_of_a_state_space_is_adapted_as_it_is_merged(served: bool, root: Path) -> None:
    """Its map is not run as a module; the reference forgets an adapter there, which then never learns anything."""
    kind = Kind("step", "mamba", {"target_modules": ["dt_proj"], "r": 3, "lora_alpha": 1000})
    model = load(kind.base.folder(root))
    model = serve_form(model, "fp32") if served else model
    bank, plain = Bank(model), run(model, kind)
    bank.load("a", kind.folder(root))
    with bank.using([("a", EVERY)]):
        ours = run(model, kind)
    assert apart(ours, plain) > 1e-3
    other = load(kind.base.folder(root))
    merge(other, kind.folder(root))
    assert apart(ours, run(other, kind)) <= BOUND


@torch.no_grad()
def test_pushed_and_restored_with_adapters(root: Path) -> None:
    kind = of("llama")[0]
    model = serve_form(load(kind.base.folder(root)), "fp32")
    bank = Bank(model)
    bank.load("a", kind.folder(root))
    with bank.using([("a", EVERY)]):
        assert apart(run(model, kind), expected(kind)) <= BOUND
        name = "stack.blocks.0.branches.0.layer.q.weight"
        pushed = logical(model)[name] * 1.5
        assign(model, name, pushed)
        changed = run(model, kind)
        assert torch.equal(logical(model)[name], pushed)
    bank.unload("a")
    fresh = load(kind.base.folder(root))
    fresh.get_parameter(name).copy_(pushed)
    other = Bank(fresh)
    other.load("a", kind.folder(root))
    with other.using([("a", EVERY)]):
        assert apart(run(fresh, kind), changed) <= BOUND


def test_a_bank_knows_its_adapters(root: Path) -> None:
    kind = of("llama")[0]
    bank = Bank(load(kind.base.folder(root)))
    bank.load("poet", kind.folder(root))
    first = bank.version("poet")
    with pytest.raises(InputError, match="already"):
        bank.load("poet", kind.folder(root))
    with pytest.raises(InputError, match="Did you mean 'poet'"), bank.using([("poets", EVERY)]):
        pass
    with bank.using([("poet", EVERY)]), pytest.raises(Refusal, match="being used"):
        bank.unload("poet")
    assert bank.nbytes("poet") == 3 * 4 * (4 * 48 * 2 + 48 * 4 + 16 * 4)
    bank.unload("poet")
    assert bank.names == []
    bank.load("poet", kind.folder(root))
    assert bank.version("poet") != first


# ---------------------------------------------------------------------------------------------- hostile folders


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


def _rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    name = next(name for name in tensors if old in name)
    tensors[name.replace(old, new)] = tensors.pop(name)


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return next(iter(tensors))


WRONG: dict[str, tuple[Change, type[Exception], str]] = {
    "another kind": (lambda c, t: c.update(peft_type="IA3"), Refusal, "'IA3'"),
    "no kind": (lambda c, t: c.pop("peft_type"), Refusal, "None"),
    "rank 0": (lambda c, t: c.update(r=0), ConfigError, "`r` must be"),
    "rank of text": (lambda c, t: c.update(r="8"), ConfigError, "`r` must be"),
    "another rank": (lambda c, t: c.update(r=5), CheckpointError, "rank 5 need"),
    "alpha NaN": (lambda c, t: c.update(lora_alpha=float("nan")), ConfigError, "`lora_alpha`"),
    "no targets": (lambda c, t: c.update(target_modules=None), ConfigError, "`target_modules`"),
    "unknown targets": (lambda c, t: c.update(target_modules=["c_attn"]), ConfigError, "no such linear map"),
    "slow pattern": (lambda c, t: c.update(target_modules="(.*a.*)*b"), Refusal, "for ever"),
    "slow rank pattern": (lambda c, t: c.update(rank_pattern={".*.*.*.*.*.*x": 2}), Refusal, "for ever"),
    "broken pattern": (lambda c, t: c.update(target_modules="(q_proj"), ConfigError, "no regular expression"),
    "embeddings": (lambda c, t: c.update(target_modules=["q_proj", "embed_tokens"]), Refusal, "embed_tokens"),
    "a head": (lambda c, t: c.update(target_modules=["q_proj", "lm_head"]), Refusal, "lm_head"),
    "a norm": (lambda c, t: c.update(target_modules=["input_layernorm"]), Refusal, "a norm"),
    "whole modules": (lambda c, t: c.update(modules_to_save=["lm_head"]), Refusal, "modules_to_save"),
    "bare parameters": (lambda c, t: c.update(target_parameters=["x"]), Refusal, "target_parameters"),
    "changed base": (lambda c, t: c.update(init_lora_weights="pissa_niter_4"), Refusal, "pissa"),
    "unknown bias": (lambda c, t: c.update(bias="some"), ConfigError, "`bias`"),
    "bias not there": (lambda c, t: c.update(lora_bias=True), CheckpointError, "lora_B.bias"),
    "dora not there": (lambda c, t: c.update(use_dora=True), CheckpointError, "lora_magnitude_vector"),
    "missing tensor": (lambda c, t: t.pop(_first(t)), CheckpointError, "lacks"),
    "surplus layer": (lambda c, t: c.update(layers_to_transform=[0]), CheckpointError, "do not ask for"),
    "unknown module": (lambda c, t: _rename(t, "layers.2", "layers.7"), CheckpointError, "no 'model.layers.7"),
    "unknown tensor": (lambda c, t: _rename(t, "lora_A", "lora_C"), Refusal, "lora_C"),
    "no prefix": (lambda c, t: _rename(t, "base_model.", "basis."), CheckpointError, "does not start"),
    "wrong shape": (lambda c, t: t.update({_first(t): torch.ones(4, 47)}), CheckpointError, r"shape \(4, 47\)"),
    "whole numbers": (lambda c, t: t.update({_first(t): torch.ones(4, 48).char()}), CheckpointError, "int8"),
    "infinity": (lambda c, t: t.update({_first(t): torch.full((4, 48), torch.inf)}), CheckpointError, "infinity"),
    "unknown key": (lambda c, t: c.update(use_rlsora=True), OpenbookWarning, "use_rslora"),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_folder_is_a_clear_error(change: str, root: Path, tmp_path: Path) -> None:
    kind = of("llama")[0]
    config = json.loads((kind.folder(root) / CONFIG).read_text())
    tensors = load_file(kind.folder(root) / WEIGHTS)
    make, error, words = WRONG[change]
    make(config, tensors)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    save_file(tensors, tmp_path / WEIGHTS)
    model = load(kind.base.folder(root))
    bank = Bank(model)
    with pytest.raises(error, match=words):
        bank.load("a", tmp_path)
    assert bank.names == []
    assert model.rewrites == []
    assert not any(module._forward_hooks for module in model.modules())


def test_files_that_are_none(root: Path, tmp_path: Path) -> None:
    folder = of("llama")[0].folder(root)
    bank = Bank(load(of("llama")[0].base.folder(root)))
    with pytest.raises(CheckpointError, match="no adapter folder"):
        bank.load("a", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=CONFIG):
        bank.load("a", tmp_path)
    (tmp_path / CONFIG).write_text((folder / CONFIG).read_text())
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickle"):
        bank.load("a", tmp_path)
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        bank.load("a", tmp_path)
    (tmp_path / CONFIG).write_text("[1, 2")
    with pytest.raises(ConfigError, match="not valid JSON"):
        bank.load("a", tmp_path)


# ---------------------------------------------------------------------------------------------- seeded faults


FAULTS: dict[str, Callable[[Settings], Settings]] = {
    "another scale": lambda s: replace(s, alpha=s.alpha * 1.001),
    "root for rank": lambda s: replace(s, root_scaled=not s.root_scaled),
}


@pytest.mark.parametrize("fault", FAULTS)
@torch.no_grad()
def test_a_wrong_scale_breaks_the_law(fault: str, root: Path) -> None:
    kind = of("gpt2")[0]
    model = load(kind.base.folder(root))
    adapter = read(kind.folder(root))
    bank = Bank(model)
    bank.load("a", replace(adapter, settings=FAULTS[fault](adapter.settings)))
    with bank.using([("a", EVERY)]):
        assert apart(run(model, kind), expected(kind)) > BOUND


@torch.no_grad()
def test_parts_of_a_fused_matrix_in_the_wrong_order_break_the_law(root: Path) -> None:
    kind = of("gpt2")[0]
    model = load(kind.base.folder(root))
    adapter = read(kind.folder(root))
    turned = {
        name: tensor.roll(len(tensor) // 3, 0) if "c_attn.lora_B" in name else tensor
        for name, tensor in adapter.tensors.items()
    }
    bank = Bank(model)
    bank.load("a", replace(adapter, tensors=turned))
    with bank.using([("a", EVERY)]):
        assert apart(run(model, kind), expected(kind)) > BOUND
