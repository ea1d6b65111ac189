"""What recurrent layers over packed rows share: the short causal convolution, and what segments do to a state.

Padding (segment 0) leaves a state as it is; a new segment starts from nothing. Symbols: see shapes.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.nn import rows


def marks(segments: Tensor | None) -> Tensor | None:
    """What a token does to the state, [B,T]: 0 nothing (padding), 1 go on, 2 start from nothing (a new segment)."""
    if segments is None:
        return None
    latest = F.pad(segments, (1, 0))[:, :-1].cummax(dim=1).values
    fresh = (latest != 0) & (segments != latest)
    return torch.where(segments == 0, 0, fresh.long() + 1)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor | None, segments: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Causal depth-wise convolution of x [B,T,C] that does not look across segments, and what to keep for later.

    weight [C,kernel], bias [C]; `kept` [B,C,kernel-1] are the inputs before the first; padding counts as nothing.
    """
    kernel = weight.shape[1]
    if segments is not None:
        x = x * (segments != 0).unsqueeze(-1)
    history = x.new_zeros(len(x), x.shape[2], kernel - 1) if kept is None else kept.to(x.dtype)
    padded = torch.cat([history.transpose(1, 2), x], dim=1)  # [B,kernel-1+T,C]
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return _convolved(padded, weight, bias, segments), _tail(padded, kernel - 1, segments)


def _convolved(padded: Tensor, weight: Tensor, bias: Tensor | None, segments: Tensor | None) -> Tensor:
    kernel = weight.shape[1]
    tokens = padded.shape[1] - kernel + 1
    if segments is None and rows.usable(padded) is None:
        out = F.conv1d(padded.transpose(1, 2), weight.unsqueeze(1), bias, groups=weight.shape[0])
        return out.transpose(1, 2)
    before = None
    if segments is not None:
        before = F.pad(segments, (kernel - 1, 0))
        before[:, : kernel - 1] = segments[:, :1]  # what was kept belongs to the row's first segment
    total = padded.new_zeros(()) if bias is None else bias
    for place in range(kernel):  # products and sums by themselves are rounded alike wherever a row lies
        seen = padded[:, place : place + tokens]
        if before is not None and segments is not None:
            seen = seen * torch.eq(before[:, place : place + tokens], segments).unsqueeze(-1)
        total = total + seen * weight[:, place]
    return total


def _tail(padded: Tensor, keep: int, segments: Tensor | None) -> Tensor:
    """The last `keep` real inputs of each row, [B,C,keep]."""
    if segments is None:
        return padded[:, padded.shape[1] - keep :].transpose(1, 2)
    places = torch.arange(1, segments.shape[1] + 1, device=segments.device)
    ends = torch.where(segments != 0, places, 0).amax(dim=1)  # [B]
    index = ends.unsqueeze(1) + torch.arange(keep, device=ends.device)  # [B,keep]
    return padded.gather(1, index.unsqueeze(-1).expand(-1, -1, padded.shape[2])).transpose(1, 2)
