"""Initial weights for training from nothing.

Matrices are normal with `std`; those that write into the residual stream are divided by √(2·blocks) (Radford et al.
2019, §2.3); norms start at one, biases at zero; state spaces start as in Gu & Dao 2023 (§3.6), LSTMs as in
Jozefowicz et al. 2015.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from openbook.nn.attention import SelfAttention, SourceAttention
from openbook.nn.attentive import AttentiveLayer
from openbook.nn.embed import RelativeBias, Table
from openbook.nn.heads import LanguageHead, MixHead
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.moe import Experts
from openbook.nn.norm import Normalise
from openbook.nn.recurrent import Cell
from openbook.nn.selective import StateSpace


@torch.no_grad()
def initialise(model: LanguageModel, seed: int, std: float = 0.02) -> None:
    """Fill every parameter of `model` in place; a pure function of (spec, seed, std)."""
    generator = torch.Generator().manual_seed(seed)
    residual = std / math.sqrt(2 * max(len(model.stack.blocks), 1))
    for module in model.modules():
        match module:
            case Normalise():
                nn.init.constant_(module.weight, 1.0 - module.spec.offset)
                if module.bias is not None:
                    module.bias.zero_()
            case Linear():
                module.weight.normal_(0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            case Table() | RelativeBias():
                module.weight.normal_(0, std, generator=generator)
            case LanguageHead():
                if module.weight is not None:
                    module.weight.normal_(0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            case Experts():
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(0, std, generator=generator)
            case MixHead():
                module.weights.zero_()
                module.scale.fill_(1.0)
            case _:
                pass
    for module in model.modules():
        match module:
            case SelfAttention() | SourceAttention() | StateSpace():
                module.out.weight.normal_(0, residual, generator=generator)
            case FeedForward() | Experts():
                down = module.down.weight if isinstance(module, FeedForward) else module.down
                down.normal_(0, residual, generator=generator)
            case _:
                pass
        if isinstance(module, StateSpace):
            _initialise_state_space(module, generator)
        if isinstance(module, Cell):
            _initialise_cell(module, generator)
        if isinstance(module, AttentiveLayer):
            for part in (module.memory.key, module.memory.query, module.memory.score, module.bridge, module.out):
                if part is not None:
                    bound = part.weight.shape[1] ** -0.5
                    part.weight.uniform_(-bound, bound, generator=generator)
    if model.spec.embed.padding is not None:
        model.embed.tokens.weight[model.spec.embed.padding].zero_()


def _initialise_cell(cell: Cell, generator: torch.Generator) -> None:
    """Uniform within 1/√hidden; an LSTM forgets nothing at first (Jozefowicz et al. 2015 §2.2)."""
    bound = cell.hidden**-0.5
    for part in (cell.input, cell.state, cell.project):
        if part is not None:
            part.weight.uniform_(-bound, bound, generator=generator)
    if cell.kind == "lstm" and cell.input.bias is not None:
        cell.input.bias[cell.hidden : 2 * cell.hidden] = 1.0


def _initialise_state_space(layer: StateSpace, generator: torch.Generator) -> None:
    inner, state = layer.log_decay.shape
    layer.log_decay.copy_(torch.arange(1, state + 1).float().log().expand(inner, -1))
    layer.skip.fill_(1.0)
    bound = layer.spec.kernel**-0.5
    layer.conv.uniform_(-bound, bound, generator=generator)
    if layer.conv_bias is not None:
        layer.conv_bias.uniform_(-bound, bound, generator=generator)
    spread = max(layer.spec.rank, 1) ** -0.5
    layer.step.weight.uniform_(-spread, spread, generator=generator)
    step = torch.rand(inner, generator=generator) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)
    step = step.exp().clamp(min=1e-4)
    assert layer.step.bias is not None
    layer.step.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is `step`
