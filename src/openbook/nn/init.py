"""Initial weights for training from nothing.

Matrices are normal with `std`; those that write into the residual stream are divided by √(2·blocks) (Radford et al.
2019, §2.3); norms start at one, biases at zero; what keeps a state starts as init_states.py and init_recurrent.py say.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from openbook.nn.attention import SelfAttention, SourceAttention
from openbook.nn.attentive import AttentiveLayer
from openbook.nn.disentangled import Convolve, DisentangledSelfAttention, DistanceTable
from openbook.nn.embed import RelativeBias, Table
from openbook.nn.globals import WindowAndGlobal
from openbook.nn.heads import LanguageHead, MixHead
from openbook.nn.init_recurrent import initialise_attentive, initialise_cell
from openbook.nn.init_states import StateLayer, initialise_states
from openbook.nn.latent import LatentAttention
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.moe import Experts, Mixture
from openbook.nn.norm import Normalise
from openbook.nn.recurrent import Cell


@torch.no_grad()
def initialise(model: LanguageModel, seed: int, std: float = 0.02) -> None:
    """Fill every parameter of `model` in place; a pure function of (spec, seed, std)."""
    generator = torch.Generator().manual_seed(seed)
    residual = std / math.sqrt(2 * max(len(model.spec.stack.steps), 1))
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
            case Table() | RelativeBias() | DistanceTable():
                module.weight.normal_(0, std, generator=generator)
            case LanguageHead():
                if module.weight is not None:
                    module.weight.normal_(0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            case Convolve():
                module.weight.normal_(0, std, generator=generator)
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
            case MixHead():
                module.weights.zero_()
                module.scale.fill_(1.0)
            case _:
                pass
    for module in model.modules():
        match module:
            case (
                SelfAttention()
                | LatentAttention()
                | SourceAttention()
                | WindowAndGlobal()
                | DisentangledSelfAttention()
            ):
                module.out.weight.normal_(0, residual, generator=generator)
            case FeedForward() | Experts():
                down = module.down.weight if isinstance(module, FeedForward) else module.down
                down.normal_(0, residual, generator=generator)
            case _:
                pass
        if isinstance(module, StateLayer):
            module.out.weight.normal_(0, residual, generator=generator)
            initialise_states(module, generator)
        if isinstance(module, Cell):
            initialise_cell(module, generator)
        if isinstance(module, AttentiveLayer):
            initialise_attentive(module, generator)
    if model.spec.embed.padding is not None:
        model.embed.tokens.weight[model.spec.embed.padding].zero_()
