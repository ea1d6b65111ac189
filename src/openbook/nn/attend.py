"""Scaled dot-product attention over keys at hand, in one place: plain PyTorch beside the fused operator.

`mix_reference` is the definition (Vaswani et al. 2017, eq. 1, with soft-capped scores as in Gemma 2, §2); `mix` is the
same through a fused operator where one can say it: ours for bf16 on the CPU (flash.py), else
`scaled_dot_product_attention`; and in blocks where a window is short beside its row (band.py). Symbols: see shapes.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.nn.band import Band, cut, join
from openbook.nn.flash import flash, suits


class Order(NamedTuple):
    """What `seen` was made of, where keys and queries are the same tokens: see `flash`."""

    causal: bool
    window: int | None
    segments: Tensor | None  # [B,T]


def mix_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Mix values by scores. q [B,T,H,K], k [B,S,G,K], v [B,S,G,V] → [B,T,H,V].

    `seen` [B or 1,1,T,S] is true where a query may look; `causal` stands for the lower triangle, aligned at the start;
    `bias` [B or 1,H,T,S] is added to the scores and already holds -inf where nothing may be seen. `sinks` [H] are one
    more score of each head, without a value: they only take weight away (Xiao et al. 2023, §3.3).
    """
    group = q.shape[2] // k.shape[2]
    keys = k.repeat_interleave(group, dim=2)  # [B,S,H,K]
    values = v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bthk,bshk->bhts", q, keys).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    elif seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    elif causal:
        below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~below, float("-inf"))
    if sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        sunk = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sunk], dim=-1).softmax(dim=-1)[..., :-1]
    weights = F.dropout(weights, dropout, training=dropout > 0).to(v.dtype)
    return torch.einsum("bhts,bshv->bthv", weights, values)


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | Band | None,
    causal: bool,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    order: Order | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The same as `mix_reference`, through a fused operator where one can say it (none has a soft cap or sinks).

    Where `bias` is given, it says what is seen. A `Band` says it in blocks.
    """
    if bias is not None and isinstance(seen, Band):
        seen = None
    if seen is None:
        order = Order(causal, None, None)
    plain = bias is None and softcap is None and sinks is None and not dropout
    if plain and order is not None and suits(q, k, v, scale):
        return flash(q, k, v, causal=order.causal, scale=scale, window=order.window, segments=order.segments)
    if isinstance(seen, Band):
        queries, keys, values, near = cut(q, k, v, seen)
        mixed = mix(queries, keys, values, None, False, scale, softcap, dropout, near, None, sinks)
        return join(mixed, q.shape[0], q.shape[1])
    if softcap is not None or sinks is not None:
        return mix_reference(q, k, v, seen, causal, scale, softcap, dropout, bias, sinks)
    mask = seen if bias is None else bias.to(q.dtype)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)
