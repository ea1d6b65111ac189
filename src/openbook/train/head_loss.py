"""Cross-entropy of a linear head, without the logits of all tokens in fp32.

    loss = Σ_tokens (1-ε)·(lse - x_target) + ε·(lse - mean x) + ζ·lse²      x = softcap(W h + b), lse = log Σ exp x

`reference_loss` is this, written with autograd. `head_loss` is the same number and the same gradients in one pass:
the logits of a chunk of tokens are made in the dtype of the computation, turned in place into their own gradient by
small fp32 blocks that stay in the processor's cache, and used at once for both matrix products of the backward pass.
At 4,096 tokens × 32,000 words × 288 dims in bf16 on two cores it takes 0.3 s where the reference takes 0.8 s, of
which 0.2 s are the three matrix products. N tokens, V vocabulary, D dim.

Label smoothing ε: Szegedy et al. 2016 §7. z-loss ζ: Chowdhery et al. 2022 §5. Fused head loss: Hsu et al. 2024 (Liger).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that is not learned from; torch's own number for it
LOGITS_BYTES = 128 << 20  # of the logits of one chunk; fresh memory costs a page fault every 4 KiB
BLOCK_BYTES = {"cpu": 4 << 20, "other": 512 << 20}  # of the fp32 block in which a chunk's gradient is made


class HeadWeights(NamedTuple):
    """The last linear map of a model: logits = softcap(hidden Wᵀ + bias), cast to the dtype of the hidden states."""

    weight: Tensor  # [V,D]
    bias: Tensor | None = None  # [V]
    softcap: float | None = None


class HeadLoss(NamedTuple):
    """Sums over tokens, scalars in fp32. Only `total` carries gradients."""

    total: Tensor
    nll: Tensor  # plain negative log-likelihood, in nats
    z: Tensor  # Σ lse², unweighted


def head_loss(
    hidden: Tensor, head: HeadWeights, targets: Tensor, smoothing: float = 0.0, z_weight: float = 0.0
) -> HeadLoss:
    """The summed loss of hidden states [N,D] against targets [N] int64, none of them `IGNORE`."""
    if not len(targets):
        nothing = hidden.sum().float()  # zero: there is nothing to sum, and still a part of the graph
        return HeadLoss(nothing, nothing.detach(), nothing.detach())
    if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, head.weight, head.bias) if t is not None):
        total, parts = _FusedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, head.softcap, smoothing, z_weight
        )
        return HeadLoss(total, parts[1], parts[2])
    sums = torch.zeros(3, device=hidden.device)
    weight, bias = head.weight.to(hidden.dtype), None if head.bias is None else head.bias.to(hidden.dtype)
    for rows in _chunks(len(targets), weight.shape[0] * weight.element_size(), LOGITS_BYTES):
        sums += _losses(F.linear(hidden[rows], weight, bias), targets[rows], head.softcap, smoothing, z_weight, False)
    return HeadLoss(*sums.unbind())


def reference_loss(
    hidden: Tensor, head: HeadWeights, targets: Tensor, smoothing: float = 0.0, z_weight: float = 0.0
) -> HeadLoss:
    """What `head_loss` must equal, outputs and gradients: logits [N,V] in fp32 and torch's own cross-entropy."""
    bias = None if head.bias is None else head.bias.to(hidden.dtype)
    logits = F.linear(hidden, head.weight.to(hidden.dtype), bias).float()
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    z = logits.logsumexp(-1).square().sum()
    total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) + z_weight * z
    nll = F.cross_entropy(logits.detach(), targets, reduction="sum")
    return HeadLoss(total, nll, z.detach())


def learned(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [B,T,D] and targets [B,T] → [N,D] and [N]: only the tokens whose target is not `IGNORE`."""
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    rows = (targets != IGNORE).nonzero().squeeze(1)
    return (hidden, targets) if len(rows) == len(targets) else (hidden[rows], targets[rows])


def _chunks(count: int, row_bytes: int, limit: int) -> list[slice]:
    """Slices of nearly equal length over `count` rows, each of at most `limit` bytes (but at least one row)."""
    parts = min(count, -(-count * row_bytes // limit))
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


class _FusedLoss(torch.autograd.Function):
    """(hidden [N,D], weight [V,D], bias [V]) → (total, [total, nll, z]); the gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        smoothing: float,
        z_weight: float,
    ) -> tuple[Tensor, Tensor]:
        used = weight.to(hidden.dtype)
        used_bias = None if bias is None else bias.to(hidden.dtype)
        sums = torch.zeros(3, device=hidden.device)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight: Tensor | None = None
        to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        chunks = _chunks(len(targets), used.shape[0] * used.element_size(), LOGITS_BYTES)
        longest = max(rows.stop - rows.start for rows in chunks)
        memory = torch.empty(longest, used.shape[0], dtype=used.dtype, device=used.device)
        for rows in chunks:
            logits = torch.mm(hidden[rows], used.T, out=memory[: rows.stop - rows.start])  # [n,V]
            if used_bias is not None:
                logits += used_bias
            sums += _losses(logits, targets[rows], softcap, smoothing, z_weight, True)  # now their gradient
            if to_hidden is not None:
                to_hidden[rows] = logits @ used
            if ctx.needs_input_grad[1]:
                part = (logits.T @ hidden[rows]).to(weight.dtype)
                to_weight = part if to_weight is None else to_weight.add_(part)
            if to_bias is not None:
                to_bias += logits.sum(0, dtype=torch.float32).to(to_bias.dtype)
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        ctx.mark_non_differentiable(sums)
        return sums[0].clone(), sums

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        made = (None if part is None else part * upstream.to(part.dtype) for part in ctx.saved_tensors)
        return (*made, None, None, None, None)


def _losses(
    logits: Tensor, targets: Tensor, softcap: float | None, smoothing: float, z_weight: float, gradient: bool
) -> Tensor:
    """[total, nll, Σ lse²] of logits [n,V]; with `gradient`, the logits are overwritten by d total / d logits."""
    words = logits.shape[1]
    sums = torch.zeros(3, device=logits.device)
    limit = BLOCK_BYTES["cpu" if logits.device.type == "cpu" else "other"]
    for rows in _chunks(len(targets), words * 4, limit):
        block, wanted = logits[rows], targets[rows, None]
        x = block.to(torch.promote_types(block.dtype, torch.float32))
        if softcap is not None:
            x = torch.tanh(x / softcap) * softcap
        log_p = torch.log_softmax(x, dim=-1)
        at = log_p.gather(1, wanted)
        lse = x.gather(1, wanted) - at  # [n,1]
        nll, z = -at.sum(), lse.square().sum()
        smooth = -log_p.sum() / words if smoothing else 0.0
        sums += torch.stack(((1 - smoothing) * nll + smoothing * smooth + z_weight * z, nll, z))
        if not gradient:
            continue
        p = log_p.exp_()
        if z_weight:
            p.mul_(1 + 2 * z_weight * lse)
        if smoothing:
            p.sub_(smoothing / words)
        p.scatter_add_(1, wanted, torch.full_like(at, smoothing - 1))
        if softcap is not None:
            p.mul_(1 - (x / softcap).square())
        block.copy_(p)
    return sums
