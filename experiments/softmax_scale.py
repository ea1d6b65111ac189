"""Why scores are divided by √d.

Question: what happens to attention as the heads grow wider, with and without the scale 1/√d? Method: queries and keys
of independent standard normal numbers, 64 keys; the entropy of the weights and the norm of the softmax's derivative.
Expected: dot products have a variance of d, so that without the scale the softmax saturates: its entropy falls to
nothing and no gradient comes back (Vaswani et al. 2017 §3.2.1, footnote 4). With it, neither changes with d.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from experiments.lab import Results, lines

KEYS, WIDTHS = 64, (4, 8, 16, 32, 64, 128, 256, 512)


def measure(dim: int, scale: float, rows: int, generator: torch.Generator) -> tuple[float, float]:
    """Mean entropy of the weights as a share of the greatest, and the median norm of what the softmax lets back."""
    q = torch.randn(rows, 1, dim, generator=generator)
    k = torch.randn(rows, KEYS, dim, generator=generator)
    weights = ((q * k).sum(-1) * scale).softmax(1)  # [rows,keys]
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(1).mean() / math.log(KEYS)
    back = torch.diag_embed(weights) - weights.unsqueeze(2) * weights.unsqueeze(1)  # ∂ weights / ∂ scores
    return float(entropy), float(back.flatten(1).norm(dim=1).median())


def run(quick: bool, seed: int) -> Results:
    """Entropy and gradient at each width, scaled and not."""
    rows = 64 if quick else 512
    generator = torch.Generator().manual_seed(seed)
    found: Results = {"widths": WIDTHS, "entropy": {}, "gradient": {}}
    for name, scale in (("scaled by 1/√d", True), ("not scaled", False)):
        pairs = [measure(dim, dim**-0.5 if scale else 1.0, rows, generator) for dim in WIDTHS]
        found["entropy"][name] = [entropy for entropy, _ in pairs]
        found["gradient"][name] = [gradient for _, gradient in pairs]
    return found


def claims(results: Results) -> dict[str, bool]:
    """Saturated without the scale, unchanged with it."""
    scaled, plain = (results["entropy"][name] for name in ("scaled by 1/√d", "not scaled"))
    good, bad = (results["gradient"][name] for name in ("scaled by 1/√d", "not scaled"))
    spread = max(scaled) - min(scaled)
    return {
        f"scaled: the entropy does not change with the width (spread {spread:.3f})": spread < 0.06,
        f"not scaled: it falls from {plain[0]:.2f} to {plain[-1]:.2f}": plain[-1] < 0.15,
        f"not scaled: the gradient vanishes ({bad[-1] / good[-1]:.1e} of the scaled one)": bad[-1] < 0.1 * good[-1],
    }


def draw(results: Results, figure: Any) -> None:
    """Two pictures side by side."""
    left, right = figure.subplots(1, 2)
    titles = (("entropy", "entropy of the weights (1: all alike)"), ("gradient", "norm of ∂ weights / ∂ scores"))
    for axes, (key, label) in zip((left, right), titles, strict=True):
        curves = {name: (results["widths"], values) for name, values in results[key].items()}
        lines(axes, curves, xlabel="width of a head, d", ylabel=label)
        axes.set_xscale("log", base=2)
    right.set_yscale("log")
    left.set_ylim(0, 1)
    figure.suptitle("Softmax over 64 keys, with and without 1/√d")
