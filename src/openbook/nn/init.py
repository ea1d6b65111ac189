"""Initial weights for training from nothing.

Matrices are normal with `std`; those that write into the residual stream are divided by √(2·blocks) (Radford et al.
2019, §2.3); norms start at one, biases at zero; state spaces start as in Gu & Dao 2023 (§3.6).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from openbook.nn.attention import SelfAttention, SourceAttention
from openbook.nn.embed import RelativeBias, Table
from openbook.nn.heads import LanguageHead
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.moe import Experts, Mixture
from openbook.nn.norm import Normalise
from openbook.nn.selective import StateSpace


@torch.no_grad()
def initialise(model: LanguageModel, seed: int, std: float = 0.02) -> None:
    """Fill every parameter of `model` in place; a pure function of (spec, seed, std)."""
    generator = torch.Generator().manual_seed(seed)
    residual = std / math.sqrt(2 * max(len(model.stack.blocks), 1))
    for module in model.modules():
        match module:
            case Normalise():
                if module.weight is not None:
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
                    if parameter.ndim == 3:
                        parameter.normal_(0, std, generator=generator)
                    else:
                        parameter.zero_()
            case SelfAttention(sinks=nn.Parameter() as sinks):
                sinks.zero_()
            case Mixture(correction=nn.Parameter() as correction):
                correction.zero_()
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
    if model.spec.embed.padding is not None:
        model.embed.tokens.weight[model.spec.embed.padding].zero_()


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
