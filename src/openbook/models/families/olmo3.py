"""OLMo 3 (OLMo et al. 2025): OLMo 2 with windows on three layers of four, and scaled positions on the others alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models.config import Config, read_rope, write_rope
from openbook.models.families.olmo2 import from_spec as from_spec2
from openbook.models.family import Family, layers_of
from openbook.models.modern import AFTER_NORMS, decoder_heads, mlp, rms
from openbook.models.parts import BASE, GATED, IGNORE, decoder, read_shape, windows, write_windows
from openbook.nn import spec

KINDS = {False: "full_attention", True: "sliding_attention"}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    norm, bias = rms(config, 1e-5), config.get("attention_bias", False)
    found = windows(config, shape.layers, lambda i: (i + 1) % 4 != 0, config.get("sliding_window", 4096))
    ropes = {w: read_rope(config, shape.head_dim, shape.context, kind, 5e5) for w, kind in KINDS.items()}
    if not config.has("rope_parameters"):  # the old spelling scales the full layers alone
        ropes[True] = replace(ropes[True], scaling=None)
    layers = [
        spec.Attention(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            pattern=spec.Pattern(window=window),
            rope=ropes[window is not None],
            norm=spec.QueryKeyNorm(norm=norm, over="width"),
            dropout=config.get("attention_dropout", 0.0),
            bias=bias,
            out_bias=bias,
        )
        for window in found
    ]
    return decoder(shape, norm, layers.__getitem__, mlp(config, shape), "after")


def from_spec(model: spec.Model) -> dict[str, Any]:
    layers: list[spec.Attention] = layers_of(model.stack, spec.Attention)
    ropes = {KINDS[a.pattern.window is not None]: write_rope(a.rope, a.head_dim) for a in layers if a.rope is not None}
    said = write_windows(model)
    return from_spec2(model) | said | {"sliding_window": said["sliding_window"] or 4096, "rope_parameters": ropes}


FAMILY = Family(
    model_type="olmo3",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + AFTER_NORMS + GATED,
    heads=decoder_heads("Olmo3", tokens=False),
    prefix="model.",
    ignore=IGNORE,
)
