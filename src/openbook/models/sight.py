"""How many tokens a token sees, from its pattern alone."""

from __future__ import annotations

from openbook.nn import spec


def tokens_seen(pattern: spec.Pattern, context: int) -> tuple[float, float]:
    """How many tokens one sees, itself included: the mean over a row, and the row's last."""

    def pairs(tokens: int) -> float:  # of a stretch: how many its tokens see in all, if causal
        reach = tokens if pattern.window is None else min(pattern.window, tokens)
        return reach * (reach + 1) / 2 + (tokens - reach) * reach

    whole, left = divmod(context, pattern.chunk or context)
    causal = (whole * pairs(pattern.chunk or context) + pairs(left)) / context
    if pattern.causal:
        return causal, min(left or pattern.chunk or context, pattern.window or context)
    return 2 * causal - 1, 2 * causal - 1
