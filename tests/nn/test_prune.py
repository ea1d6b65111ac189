"""Heads removed: the same numbers as with these heads masked, a spec that says it, folders that keep it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from openbook.errors import ConfigError, InputError, OpenbookWarning, Refusal
from openbook.models.cost import inventory, parameters
from openbook.models.load import load, save
from openbook.models.make import make
from openbook.models.registry import read
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.nn.prune import Heads, prune_heads, pruned
from openbook.nn.serving import serve_form
from tests.families import ALL, Case, tokens

NAMES = ("bert", "deberta-v2-buckets", "deberta-near", "longformer", "qwen3", "llama-biased-mqa", "gpt2", "deepseek3")
CASES = [next(case for case in ALL if case.name == name) for name in NAMES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max())))


def attention(model: spec.Model, block: int) -> spec.Attention:
    layer = model.stack.blocks[block].branches[0].layer
    assert isinstance(layer, Heads)
    return layer  # type: ignore[return-value]


def whole_groups(model: spec.Model, block: int, count: int) -> list[int]:
    """The first group, or as many heads where each has its own keys."""
    layer = attention(model, block)
    group = layer.heads // layer.kv_heads if isinstance(layer, spec.Attention) else 1
    return list(range(group)) if group > 1 else list(range(count))


def mask_heads(model: LanguageModel, block: int, heads: list[int]) -> None:
    """Their share of the output becomes nothing."""
    layer = attention(model.spec, block)
    size = layer.value_dim if isinstance(layer, spec.LatentAttention) else layer.head_dim
    out = model.stack.blocks[block].get_submodule("branches.0.layer.out")
    out.weight = nn.Parameter(out.weight.detach().clone())
    for head in heads:
        out.weight.data[:, head * size : (head + 1) * size] = 0


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pruned_equals_masked(case: Case, root: Path, tmp_path: Path) -> None:
    model = load(case.folder(root))
    removed = {0: whole_groups(model.spec, 0, 1), 1: whole_groups(model.spec, 1, 2)}
    if attention(model.spec, 0).heads == len(removed[0]):  # one group of all: nothing can go
        with pytest.raises(Refusal, match="keep no head"):
            prune_heads(model, removed)
        return
    ids = tokens(case, 2, 17)
    before, marks = model(ids), case.marks(ids)
    small = prune_heads(model, removed)
    assert torch.equal(model(ids), before)
    for block, heads in removed.items():
        mask_heads(model, block, heads)
    assert close(small(ids, marks=marks), model(ids, marks=marks))
    assert not close(small(ids), before)
    counted = sum(parameters(inventory(small.spec)).values())
    assert counted == sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    with pytest.warns(OpenbookWarning, match="No published family"):
        save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.spec == small.spec
    assert close(again(ids), small(ids))
    other = prune_heads(load(case.folder(root)), {0: [attention(model.spec, 0).heads - h - 1 for h in removed[0]]})
    assert not close(other(ids), small(ids))  # the seeded fault: other heads


@torch.no_grad()
def test_the_same_heads_of_every_layer_stay_in_the_family(root: Path, tmp_path: Path) -> None:
    case = next(case for case in ALL if case.name == "qwen3")
    model = load(case.folder(root))
    small = prune_heads(model, {block: [3, 4, 5] for block in range(3)})
    save(small, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]) == ("qwen3", 3, 1)
    import transformers

    theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "small").eval()
    ids = tokens(case, 2, 17)
    assert close(small(ids), theirs(ids).logits)


def test_folders_that_lack_heads_are_read(root: Path, tmp_path: Path) -> None:
    """As transformers 4 saved a pruned model: `pruned_heads` beside the full count, and smaller tensors."""
    from safetensors.torch import load_file, save_file

    case = next(case for case in ALL if case.name == "bert")
    folder = case.folder(root)
    model = load(folder)
    expected = prune_heads(model, {1: [0, 2]})
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        if "layer.1.attention" in name and "LayerNorm" not in name:
            tensor, columns = tensors[name], name.endswith("output.dense.weight")
            if columns:
                tensors[name] = tensor[:, 12:24].contiguous()
            elif ".self." in name:
                tensors[name] = tensor[12:24].contiguous()
    tmp_path.joinpath("config.json").write_text(json.dumps({**config, "pruned_heads": {"1": [0, 2]}}))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = load(tmp_path)
    ids = tokens(case, 2, 9)
    assert found.spec == expected.spec
    assert close(found(ids), expected(ids))
    assert read({**config, "pruned_heads": {}})[1] == model.spec
    for wrong in ({"1": [7]}, {"9": [0]}, [1], {"1": [0, 1, 2]}):
        with pytest.raises(ConfigError, match="pruned_heads"):
            read({**config, "pruned_heads": wrong})


@torch.no_grad()
def test_norms_and_sinks_of_each_head_go_with_it() -> None:
    """Grouped queries: the weights of keys are by group, those of queries and sinks by head."""
    norm = spec.QueryKeyNorm(norm=spec.Norm(), over="heads")
    layer = spec.Attention(heads=4, kv_heads=2, head_dim=8, norm=norm, sinks=True, gate=True, bias=True)
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=spec.Norm()),))
    stack = spec.Stack(dim=16, blocks=(block, block))
    model = make(spec.Model(embed=spec.Embed(vocab=31, dim=16), stack=stack, heads=(spec.Language(),)), seed=2)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    small = prune_heads(model, {1: [2, 3]})
    ids = torch.arange(20).view(2, 10)
    assert not close(small(ids), model(ids))
    mask_heads(model, 1, [2, 3])
    assert close(small(ids), model(ids))


def test_what_cannot_be_removed(root: Path) -> None:
    by_name = {case.name: case for case in ALL}
    model = load(by_name["llama"].folder(root))
    for heads, error, says in (
        ({0: [1]}, Refusal, r"whole groups \(\[0, 1, 2\]\)"),
        ({5: [1]}, InputError, "no block 5"),
        ({0: [6]}, InputError, "heads 0 to 5"),
    ):
        with pytest.raises(error, match=says):
            prune_heads(model, heads)
    with pytest.raises(Refusal, match="position bias"):
        prune_heads(load(by_name["t5"].folder(root)), {0: [0]})
    with pytest.raises(InputError, match="no self-attention"):
        pruned(load(by_name["mamba"].folder(root)).spec, {0: [0]})
    with pytest.raises(Refusal, match="as one vector"):  # what one head has changes all of them
        prune_heads(load(by_name["olmo2"].folder(root)), {0: [0, 1, 2]})
    with pytest.raises(Refusal, match="form for serving"):
        prune_heads(serve_form(model, "fp32"), {0: [0, 1, 2]})
