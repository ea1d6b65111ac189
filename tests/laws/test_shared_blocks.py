"""Blocks that run more than once are the unrolled stack: its numbers, its gradients added up, a state for each run.

Law 3 holds them in test_cached_equals_full.py and test_served_alone.py under the name "shared".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openbook.errors import ConfigError, OpenbookWarning
from openbook.generate.cache import Contiguous
from openbook.models.cost import inventory, parameters, work
from openbook.models.load import load, save
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.stack import Tower
from tests.laws.served import MADE

SPEC = MADE["shared"][0]()
ORDER = SPEC.stack.order
assert ORDER is not None


def random_model(of: spec.Model) -> LanguageModel:
    model, generator = build(of).eval(), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.3 if parameter.ndim > 1 else 0.1, generator=generator)
    return model


def unrolled(model: LanguageModel) -> LanguageModel:
    """The same numbers in a stack that has each step as a block of its own."""
    of = replace(SPEC, stack=replace(SPEC.stack, blocks=SPEC.stack.steps, order=None))
    copy, source = build(of).eval(), dict(model.named_parameters())
    for name, parameter in copy.named_parameters():
        head, _, rest = name.removeprefix("stack.blocks.").partition(".")
        parameter.data = source[f"stack.blocks.{ORDER[int(head)]}.{rest}" if rest and head.isdigit() else name].data
    return copy


def test_it_is_the_unrolled_stack() -> None:
    model = random_model(SPEC)
    long, ids = unrolled(model), torch.randint(0, 131, (2, 19), generator=torch.Generator().manual_seed(2))
    assert torch.equal(model(ids), long(ids))
    for each in (model, long):
        each(ids).logsumexp(-1).sum().backward()
    added: dict[str, torch.Tensor] = {}
    for name, parameter in long.named_parameters():
        if name.startswith("stack.blocks."):
            number, _, rest = name.removeprefix("stack.blocks.").partition(".")
            key = f"stack.blocks.{ORDER[int(number)]}.{rest}"
            assert parameter.grad is not None
            added[key] = added.get(key, torch.zeros(())) + parameter.grad
    for name, gradient in added.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-4)


def test_parameters_count_once_and_operations_each_time() -> None:
    model = random_model(SPEC)
    found, long = inventory(SPEC), inventory(unrolled(model).spec)
    assert sum(parameters(found).values()) == sum(p.numel() for p in model.parameters())
    assert work(found, 64) == work(long, 64)
    assert sum(count for _, count in found.kept) == len(model.states) == sum(count for _, count in long.kept)


def cached(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    cache = Contiguous.of(model, rows=1, capacity=64)
    return torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])], dim=1)


@torch.no_grad()
def test_runs_that_share_a_state_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = random_model(SPEC), torch.randint(0, 131, (1, 9), generator=torch.Generator().manual_seed(2))
    assert (cached(model, ids) - model(ids)).abs().max() < 1e-4
    number = Tower.number

    def one_state(self: Tower) -> object:
        kept = number(self)
        self.shifts = [0] * len(self.shifts)
        return kept

    monkeypatch.setattr(Tower, "number", one_state)
    model.stack.number()
    assert (cached(model, ids) - model(ids)).abs().max() > 1e-2


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    model, ids = random_model(SPEC), torch.arange(9)[None]
    with pytest.warns(OpenbookWarning, match="No published family"):
        save(model, tmp_path)
    again = load(tmp_path)
    assert again.spec == SPEC
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 3, 2), (), (0, 1, 2, -1)])
def test_an_order_that_is_none_is_refused(order: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="`order`"):
        build(replace(SPEC, stack=replace(SPEC.stack, order=order)))
