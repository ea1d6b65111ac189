"""What an attention's norms and rotary positions are, in words for the page."""

from __future__ import annotations

from openbook.nn import spec


def norm_says(norm: spec.Norm | spec.QueryKeyNorm) -> str:
    """How q and k are normalised."""
    rule = spec.QueryKeyNorm(norm=norm) if isinstance(norm, spec.Norm) else norm
    how = {"head": "", "heads": ", a weight for each head", "width": " over all heads"}[rule.over]
    return f"q and k normalised{how}" + (", once turned" if rule.rotated else "")


def rope_says(rope: spec.Rope, head_dim: int) -> str:
    """Rotary positions and how they are stretched."""
    part = "" if rope.dim == head_dim else f" on {rope.dim}"
    part += " in neighbours" if rope.neighbours else ""
    match rope.scaling:
        case None:
            how = ""
        case spec.LinearScaling(factor=factor):
            how = f", linear × {factor:g}"
        case spec.DynamicScaling(factor=factor, original=original):
            how = f", dynamic × {factor:g} beyond {original:,}"
        case spec.YarnScaling(factor=factor, original=original):
            how = f", yarn × {factor:g} of {original:,}"
        case spec.WavelengthScaling(factor=factor, original=original):
            how = f", by wavelength × {factor:g} of {original:,}"
        case spec.LongRopeScaling(original=original):
            how = f", longrope beyond {original:,}"
        case spec.NtkScaling(factor=factor):
            how = f", ntk × {factor:g}"
        case spec.ProportionalScaling(share=share, factor=factor):
            how = f", {share:.0%} of the frequencies × {factor:g}"
    return f"rope{part} θ {rope.theta:,.0f}{how}"
