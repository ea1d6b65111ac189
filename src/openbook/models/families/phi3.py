"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024): a Llama with fused matrices, LongRoPE and a window."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, branches_of, layers_of
from openbook.models.modern import FUSED_GATED, attention, decoder_heads, mlp, rms, write
from openbook.models.names import Name, fused
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, decoder, read_shape, write_windows
from openbook.nn import spec

INERT = ("embd_pdrop", "attention_bias")  # the reference drops and adds nothing there


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=4096)
    config.data = {"original_max_position_embeddings": 4096, **config.data}  # what silence means
    config.inert(*INERT)
    layer = attention(config, shape, config.get("sliding_window", None, int))
    drop = config.get("resid_pdrop", 0.0)
    return decoder(shape, rms(config, 1e-5), lambda _: layer, mlp(config, shape), dropout=drop)


def from_spec(model: spec.Model) -> dict[str, Any]:
    rope = layers_of(model.stack, spec.Attention)[0].rope
    scaling = None if rope is None else rope.scaling
    original = (
        {"original_max_position_embeddings": scaling.original} if isinstance(scaling, spec.LongRopeScaling) else {}
    )
    return (
        write(model)
        | original
        | {
            "sliding_window": write_windows(model)["sliding_window"],
            "resid_pdrop": branches_of(model.stack)[0].dropout,
        }
    )


def names(model: spec.Model) -> tuple[Name, ...]:
    layer: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    parts = [f"{BLOCK}.0.layer.{part}" for part in "qkv"]
    shares = (layer.heads, layer.kv_heads, layer.kv_heads)
    return BASE[:4] + BASE[7:8] + PRE_NORMS + FUSED_GATED + fused("model.layers.{i}.self_attn.qkv_proj", parts, shares)


FAMILY = Family(
    model_type="phi3",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=decoder_heads("Phi3"),
    prefix="model.",
    ignore=IGNORE,
)
