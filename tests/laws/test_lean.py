"""Law 2 for nn/lean.py: a block in two native calls equals the block; weights are read where they lie."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from openbook.models.load import load
from openbook.models.make import make
from openbook.native import block as native
from openbook.nn import spec
from openbook.nn.linear import Linear
from openbook.nn.model import LanguageModel
from tests.families import DECODERS, Case, each, tokens

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: the reference does the work")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def lean_blocks(model: LanguageModel) -> int:
    """How many blocks ran natively."""
    return sum(block.lean is not None and block.lean[1] is not None for block in model.stack.blocks)


def both(model: LanguageModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits by native calls, and by the reference (which gradients ask for)."""
    with torch.no_grad():
        fast = model(ids)
    with torch.enable_grad():
        return fast.float(), model(ids).detach().float()


@each(DECODERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_block(case: Case, dtype: str, root: Path) -> None:
    model = load(case.folder(root), dtype=dtype)
    for rows, count in ((1, 1), (3, 1), (1, 4), (2, 2)):
        fast, reference = both(model, tokens(case, rows, count))
        # bf16: both round at the same places; a sum in another order may fall on the other side of one.
        bound = 1e-5 if dtype == "float32" else 2**-7
        assert (fast - reference).abs().max() <= bound * max(1.0, float(reference.abs().max()))
    usual = case.name.split("-")[0] in ("llama", "llama3", "gpt2", "mistral", "qwen2", "qwen3")
    if case.core:
        plain = [block for block in model.spec.stack.blocks if isinstance(block.branches[-1].layer, spec.MLP)]
        assert lean_blocks(model) == (len(plain) if usual else 0)


def test_a_row_does_not_depend_on_the_others(root: Path) -> None:
    model = load(DECODERS[0].folder(root), dtype="bfloat16")
    ids = tokens(DECODERS[0], 4, 1)
    with torch.no_grad():
        together = model(ids)
        for row in range(4):
            assert torch.equal(together[row], model(ids[row : row + 1])[0])


def test_pushed_weights_count_at_once(root: Path) -> None:
    model = load(DECODERS[0].folder(root))
    ids = tokens(DECODERS[0], 1, 2)
    before, _ = both(model, ids)
    with torch.no_grad():
        model.get_parameter("stack.blocks.1.branches.1.layer.up.weight").mul_(1.5)
    fast, reference = both(model, ids)
    assert (fast - before).abs().max() > 1e-3  # the seeded fault would be a stale copy
    assert (fast - reference).abs().max() <= 1e-5


@torch.no_grad()
def test_a_copy_of_a_model_that_has_run_stands_by_itself(root: Path) -> None:
    model = load(DECODERS[0].folder(root))
    ids = tokens(DECODERS[0], 1, 2)
    before = model(ids)
    assert lean_blocks(model)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    model.get_parameter("stack.blocks.1.branches.1.layer.up.weight").zero_()
    assert not torch.equal(model(ids), before)
    assert torch.equal(copied(ids), before)
    assert torch.equal(pickled(ids), before)


@torch.no_grad()
def test_what_a_model_in_training_drops_it_drops_without_gradients_too() -> None:
    layers = (spec.Attention(heads=2, kv_heads=1, head_dim=8), spec.MLP(hidden=24, dropout=0.5))
    block = spec.Block(branches=tuple(spec.Branch(layer=layer, norm=spec.Norm(), dropout=0.5) for layer in layers))
    stack = spec.Stack(dim=16, blocks=(block,) * 2)
    model = make(spec.Model(embed=spec.Embed(vocab=31, dim=16), stack=stack, heads=(spec.Language(),)), seed=1)
    ids = torch.arange(4).view(1, 4)
    assert torch.equal(model.eval()(ids), model(ids))
    assert lean_blocks(model) == 2
    assert not torch.equal(model.train()(ids), model(ids))


def test_a_changed_part_is_left_to_the_reference(root: Path) -> None:
    class Doubled(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = load(DECODERS[0].folder(root))
    ids = tokens(DECODERS[0], 1, 1)
    with torch.no_grad():
        model(ids)
    branch = model.stack.blocks[0].branches[0]
    old = branch.layer.q
    branch.layer.q = Doubled(old.weight.shape[1], old.weight.shape[0])
    branch.layer.q.weight = old.weight
    fast, reference = both(model, ids)
    assert (fast - reference).abs().max() <= 1e-5
