"""Sequences of random numbers in pages, and what plain attention says of them: for the laws of paged attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook.nn import paged
from openbook.nn.attend import mix_reference
from openbook.nn.paged import Layout, Pages, Walk
from openbook.nn.paged_reference import Rule

FP32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
Attend = Callable[[Pages, Walk, Tensor, Rule], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes and rule of one comparison; `new` of the `lengths` tokens of each sequence are queries."""

    lengths: tuple[int, ...] = (1, 33, 40, 600, 0)
    new: tuple[int, ...] = (1, 5, 40, 1, 0)
    heads: int = 6
    kv_heads: int = 2
    key_dim: int = 20
    value_dim: int = 12
    latent: bool = False
    page: int = 32
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    biased: bool = False
    sinks: bool = False
    chunk: int | None = None
    input: torch.dtype = FP32

    def rule(self) -> Rule:
        """The same bias and sinks each time."""
        made = torch.Generator().manual_seed(5)
        bias = torch.randn(self.heads, 700, generator=made) if self.biased else None
        sinks = torch.randn(self.heads, generator=made) if self.sinks else None
        return Rule(self.causal, self.window, self.key_dim**-0.5, self.softcap, bias, sinks, self.chunk)

    def layout(self, dtype: torch.dtype) -> Layout:
        """Pages of `dtype` for it."""
        sizes = {"kv_heads": self.kv_heads, "key_dim": self.key_dim, "value_dim": self.value_dim}
        return Layout(**sizes, page=self.page, dtype=dtype, latent=self.latent)  # type: ignore[arg-type]

    def tokens(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v of so many tokens."""
        q = torch.randn(count, self.heads, self.key_dim)
        k = torch.randn(count, self.kv_heads, self.key_dim)
        v = k[..., : self.value_dim] if self.latent else torch.randn(count, self.kv_heads, self.value_dim)
        return q.to(self.input), k.to(self.input), v.to(self.input)


class Step:
    """Sequences in pages of random numbers, all else in the pages NaN, and the queries of their last tokens."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        page = case.page
        need = [-(-length // page) for length in case.lengths]
        self.case = case
        self.pages = Pages(case.layout(dtype), sum(need) + 2)
        self.pages.data.fill_(0xFF)
        free = iter((torch.randperm(sum(need)) + 1).tolist())
        self.numbers = [list(itertools.islice(free, count)) for count in need]
        self.contents = [case.tokens(length) for length in case.lengths]
        table = torch.zeros(len(need), max(need) + 1, dtype=torch.int32)
        for i, numbers in enumerate(self.numbers):
            table[i, : len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
            slots = slots_of(numbers, range(case.lengths[i]), page)
            paged.write(self.pages, *self.contents[i][1:], slots)
        starts = torch.tensor([0, *itertools.accumulate(case.new)], dtype=torch.int32)
        nowhere = torch.full((int(starts[-1]) + 2,), -1, dtype=torch.int32)
        self.walk = Walk(
            table=table, starts=starts, lengths=torch.tensor(case.lengths, dtype=torch.int32), slots=nowhere
        )
        self.q = case.tokens(sum(case.new) + 2)[0]  # two rows of no sequence

    def plain(self, rule: Rule) -> Tensor:
        """What `mix_reference` says of what the pages hold."""
        case = self.case
        out = torch.zeros(len(self.q), case.heads, case.value_dim)
        for i, (length, count) in enumerate(zip(case.lengths, case.new, strict=True)):
            k, v = self.pages.read(self.numbers[i], length)
            first = int(self.walk.starts[i])
            distance = torch.arange(length - count, length).unsqueeze(1) - torch.arange(length)
            bias = torch.zeros(case.heads, count, length)
            if rule.bias is not None:
                bias = rule.bias[:, distance.clamp(min=0)]
            if rule.causal:
                bias = bias.masked_fill((distance < 0) | (distance >= (rule.window or 10**9)), float("-inf"))
            if rule.chunk is not None:
                part = torch.arange(length) // rule.chunk
                bias = bias.masked_fill(part[length - count :].unsqueeze(1) != part, float("-inf"))
            if rule.sinks is not None:  # a key of zeros without a value
                k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
                bias = torch.cat([bias, rule.sinks.view(-1, 1, 1).expand(-1, count, 1)], dim=2)
            if count and len(k):
                q = self.q[first : first + count].to(torch.float32 if self.pages.layout.dtype == FP32 else BF16).float()
                mixed = mix_reference(q[None], k[None], v[None], None, False, rule.scale, rule.softcap, 0.0, bias[None])
                out[first : first + count] = mixed[0]
        return out


def slots_of(numbers: Sequence[int], tokens: Sequence[int], page: int) -> Tensor:
    """Where tokens of a sequence in these pages stand."""
    return torch.tensor([numbers[t // page] * page + t % page for t in tokens], dtype=torch.int32)


def call(pages: Pages, walk: Walk, q: Tensor, rule: Rule) -> Tensor:
    """The public face."""
    return paged.attend(pages, walk, q, **rule._asdict())


def off(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Largest difference by the largest of y (at least 1), and 2-norm of the difference by that of y."""
    x, y = x.float(), y.float()
    wrong = (x - y).nan_to_num(float("inf"))
    largest = wrong.abs().max() / y.abs().max().clamp(min=1)
    return float(largest), float(wrong.norm() / y.norm().clamp(min=1e-20))
