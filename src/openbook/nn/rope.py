"""Rotary positions and the rules that stretch them to longer contexts.

Frequencies follow Su et al. 2021 (§3.4); linear interpolation Chen et al. 2023; NTK, dynamic NTK and YaRN Peng et al.
2023; LongRoPE Ding et al. 2024; the Llama 3.1 rule as published with its weights. Cosines and sines are computed once
per step and shared by all layers with the same `Rope`. Symbols: see shapes.py.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor

from openbook.nn import spec


def frequencies(rope: spec.Rope, length: int) -> Tensor:
    """Angles per position, [dim/2] in fp32. `length` is what length-dependent scaling is fixed to, in tokens."""
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    plain = 1.0 / rope.theta**exponent
    match rope.scaling:
        case None:
            return plain
        case spec.LinearScaling(factor=factor):
            return plain / factor
        case spec.DynamicScaling(factor=factor, original=original):
            stretch = factor * max(length, original) / original - (factor - 1)
            return 1.0 / (rope.theta * stretch ** (rope.dim / (rope.dim - 2))) ** exponent
        case spec.YarnScaling() as yarn:
            return _yarn(plain, rope, yarn)
        case spec.WavelengthScaling() as rule:
            return _by_wavelength(plain, rule)
        case spec.LongRopeScaling(short=short, long=long, original=original):
            return plain / torch.tensor(long if length > original else short)
        case spec.NtkScaling(factor=factor):
            return 1.0 / (rope.theta * factor ** (rope.dim / (rope.dim - 2))) ** exponent
        case spec.ProportionalScaling(share=share, factor=factor):
            turned = int(share * rope.dim // 2)
            return torch.cat([plain[:turned] / factor, torch.zeros(rope.dim // 2 - turned)])


def _yarn(plain: Tensor, rope: spec.Rope, yarn: spec.YarnScaling) -> Tensor:
    def feature(rotations: float) -> float:  # the feature that turns `rotations` times over the original context
        return rope.dim * math.log(yarn.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = feature(yarn.beta_fast), feature(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def _by_wavelength(plain: Tensor, rule: spec.WavelengthScaling) -> Tensor:
    wavelength = 2 * math.pi / plain
    blend = (rule.original / wavelength - rule.low) / (rule.high - rule.low)
    between = (1 - blend) * plain / rule.factor + blend * plain
    stretched = torch.where(wavelength > rule.original / rule.low, plain / rule.factor, plain)
    middle = (wavelength <= rule.original / rule.low) & (wavelength >= rule.original / rule.high)
    return torch.where(middle, between, stretched)


def fixed_length(rope: spec.Rope, length: int) -> int:
    """What tells one scaling from another: the length where it depends on it, as coarsely as can be, else 0."""
    match rope.scaling:
        case spec.DynamicScaling():
            return length
        case spec.LongRopeScaling(original=original):
            return original + (length > original)
        case _:
            return 0


TABLES = 16  # kept at once: requests of different lengths share steps where the scaling depends on the length


class RotaryTable:
    """cos and sin of one `Rope` for all positions up to the longest asked for; grows by doubling.

    The sine is stored with the sign of its place in the pair, so that a rotation is `x·cos + swap(x)·sin`.
    """

    def __init__(self, rope: spec.Rope) -> None:
        self.rope = rope
        self.tables: OrderedDict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = OrderedDict()

    def rows(
        self, positions: Tensor, longest: int, length: int | tuple[int, ...], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [B,T], each [B,T,1,dim]. `longest` bounds the positions (host knowledge).

        `length`: what length-dependent scaling is fixed to; for a packed row [1,T] one for each token.
        """
        if isinstance(length, tuple):
            return self._mixed(positions, longest, length, dtype)
        fixed = fixed_length(self.rope, length)
        key = (fixed, dtype, positions.device)
        found = self.tables.get(key)
        if found is None or len(found[0]) < longest:
            count = max(256, 1 << (longest - 1).bit_length())
            found = self.tables[key] = self._made(count, fixed, dtype, positions.device)
            while len(self.tables) > TABLES:
                self.tables.popitem(last=False)
        cos, sin = found
        return cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)

    def _mixed(
        self, positions: Tensor, longest: int, lengths: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The rows of a packed row whose tokens belong to sequences of different lengths."""
        distinct = tuple(dict.fromkeys(lengths))
        if len(distinct) == 1 or not isinstance(self.rope.scaling, spec.LengthDependent):
            return self.rows(positions, longest, distinct[0], dtype)
        cos = positions.new_empty(*positions.shape, 1, self.rope.dim, dtype=dtype)
        sin = torch.empty_like(cos)
        for length in distinct:
            places = torch.tensor([i for i, own in enumerate(lengths) if own == length], device=positions.device)
            cos[:, places], sin[:, places] = self.rows(positions[:, places], longest, length, dtype)
        return cos, sin

    def _made(self, count: int, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(count).float(), frequencies(self.rope, length))
        scaling = self.rope.scaling
        scale = scaling.attention if isinstance(scaling, spec.YarnScaling | spec.LongRopeScaling) else 1.0
        cos, sin = angles.cos() * scale, angles.sin() * scale
        if self.rope.neighbours:
            both = cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)
        else:
            both = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # [count,dim] each
        return both[0].to(device, dtype), both[1].to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, neighbours: bool = False) -> Tensor:
    """Turn the first `dim` features of each head by its position. x [B,T,H,K], cos and sin [B,T,1,dim].

    The pairs are (i, i + dim/2), or (2i, 2i + 1) where they are `neighbours`.
    """
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat([rotate(x[..., :dim], cos, sin, neighbours), x[..., dim:]], dim=-1)
    if neighbours:
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        half = dim // 2
        swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return x * cos + swapped * sin


def sharpen(q: Tensor, positions: Tensor, rule: spec.Temperature) -> Tensor:
    """q [B,T,H,K] of tokens at `positions` [B,T], the later ones larger.

    The logarithm is taken in fp64 and rounded, so that its bits do not depend on what stands beside a token.
    """
    steps = 1 + (positions + rule.offset) // rule.every
    return q * (1 + rule.scale * steps.double().log()).to(q.dtype)[..., None, None]
