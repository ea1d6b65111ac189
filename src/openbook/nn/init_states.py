"""What layers with a state start from: decays, steps and convolutions as their papers have them.

Mamba 1: A = −1 … −N, Δ log-uniform in [0.001, 0.1] (Gu & Dao 2023, §3.6). Mamba 2 and the gated delta rule: −A uniform
in [1, 16], Δ as before (Dao & Gu 2024, appendix D; Yang et al. 2024). S4D: A by §4.2 of Gu et al. 2022,
B one, C normal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openbook.nn.delta import DeltaRule
from openbook.nn.dual import DualSpace
from openbook.nn.selective import StateSpace
from openbook.nn.structured import StructuredSpace

StateLayer = StateSpace | DualSpace | DeltaRule | StructuredSpace
LEAST, MOST, FLOOR = 0.001, 0.1, 1e-4  # of a step


def initialise_states(layer: StateLayer, generator: torch.Generator) -> None:
    """Everything of a layer but its linear maps and norms."""
    match layer:
        case StateSpace():
            inner, state = layer.log_decay.shape
            layer.log_decay.copy_(torch.arange(1, state + 1).float().log().expand(inner, -1))
            layer.skip.fill_(1.0)
            _convolution(layer.conv, layer.conv_bias, generator)
            spread = max(layer.spec.rank, 1) ** -0.5
            layer.step.weight.uniform_(-spread, spread, generator=generator)
            assert layer.step.bias is not None
            layer.step.bias.copy_(_before_softplus(_steps(inner, generator)))
        case DualSpace() | DeltaRule():
            heads = len(layer.log_decay)
            layer.log_decay.copy_((1 + 15 * torch.rand(heads, generator=generator)).log())
            shift = layer.step if isinstance(layer, DualSpace) else layer.shift
            shift.copy_(_before_softplus(_steps(heads, generator)))
            _convolution(layer.conv, layer.conv_bias if isinstance(layer, DualSpace) else None, generator)
            if isinstance(layer, DualSpace):
                layer.skip.fill_(1.0)
        case StructuredSpace():
            dim, kept = layer.log_decay.shape
            places = torch.arange(kept).float()
            size = 2 * kept
            lin, inv = math.pi * places, size / math.pi * (size / (2 * places + 1) - 1)
            layer.log_decay.fill_(math.log(0.5))
            layer.frequency.copy_((lin if layer.spec.start == "lin" else inv).expand(dim, -1))
            layer.read.normal_(0, 0.5**0.5, generator=generator)
            layer.skip.fill_(1.0)
            layer.step.copy_(_steps(dim, generator).log())


def _steps(count: int, generator: torch.Generator) -> Tensor:
    """Log-uniform, cut off below."""
    spread = math.log(MOST) - math.log(LEAST)
    return (torch.rand(count, generator=generator) * spread + math.log(LEAST)).exp().clamp(min=FLOOR)


def _before_softplus(step: Tensor) -> Tensor:
    """What softplus makes `step` of."""
    return step + torch.log(-torch.expm1(-step))


def _convolution(weight: nn.Parameter, bias: nn.Parameter | None, generator: torch.Generator) -> None:
    bound = weight.shape[1] ** -0.5
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)
