"""DeBERTa v2 and v3 (He et al. 2021, 2021b): contents and relative positions apart; buckets, a convolution (v2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import disentangled
from openbook.models.config import Config, spell_activation
from openbook.models.disentangled import OWN, SELF
from openbook.models.family import CannotSay, Family, layers_of
from openbook.models.names import Name
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    terms, relative = disentangled.terms_of(config), config.get("relative_attention", False)
    distance, buckets = disentangled.span_of(config), config.get("position_buckets", -1)
    norms = [part.strip() for part in config.get("norm_rel_ebd", "none").lower().split("|")]
    if set(norms) - {"none", "layer_norm"}:
        raise ConfigError(f"`norm_rel_ebd` must be 'none' or 'layer_norm': got {norms} ({config.where}).")
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_eps", 1e-7), bias=True)
    vectors = spec.RelativeVectors(
        span=buckets if buckets > 0 else distance,
        distance=distance if buckets > 0 else None,
        norm=norm if "layer_norm" in norms else None,
    )
    attention = disentangled.attention_of(config, set(terms), shared=config.get("share_att_key", False))
    model = disentangled.encoder(config, attention, vectors if relative else None)
    kernel = config.get("conv_kernel_size", 0)
    groups, act = config.size("conv_groups", 1), config.activation("conv_act", "tanh")
    if kernel <= 0:
        return model
    if kernel % 2 == 0:
        raise ConfigError(f"`conv_kernel_size` must be odd: got {kernel} ({config.where}).")
    convolution = spec.Convolution(kernel=kernel, groups=groups, activation=act, dropout=model.embed.dropout)
    first, *rest = model.stack.blocks
    first = replace(first, aside=spec.Branch(layer=convolution, norm=norm, place="post"))
    return replace(model, stack=replace(model.stack, blocks=(first, *rest)))


def from_spec(model: spec.Model) -> dict[str, Any]:
    vectors, said = model.stack.relative, disentangled.write(model)
    if vectors is not None and not isinstance(vectors, spec.RelativeVectors):
        raise CannotSay("its relative positions are numbers, not vectors")
    if vectors is not None:
        buckets = vectors.distance is not None
        said |= {
            "max_relative_positions": vectors.distance or vectors.span,
            "position_buckets": vectors.span if buckets else -1,
            "norm_rel_ebd": "layer_norm" if vectors.norm else "none",
        }
    aside = model.stack.blocks[0].aside
    if aside is not None and isinstance(aside.layer, spec.Convolution):
        conv = aside.layer
        said |= {
            "conv_kernel_size": conv.kernel,
            "conv_groups": conv.groups,
            "conv_act": spell_activation(conv.activation),
        }
    return said | {"share_att_key": layers_of(model.stack, spec.DisentangledAttention)[0].shared}


def names(model: spec.Model) -> tuple[Name, ...]:
    return (
        Name("deberta.encoder.conv.conv", "stack.blocks.0.aside.layer"),
        Name("deberta.encoder.conv.LayerNorm", "stack.blocks.0.aside.norm"),
        Name(f"{SELF}query_proj", f"{OWN}q"),
        Name(f"{SELF}key_proj", f"{OWN}k"),
        Name(f"{SELF}value_proj", f"{OWN}v"),
        Name(f"{SELF}pos_key_proj", f"{OWN}position_k"),
        Name(f"{SELF}pos_query_proj", f"{OWN}position_q"),
        *disentangled.shared(model),
    )


FAMILY = Family(
    model_type="deberta-v2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=disentangled.heads("DebertaV2"),
    prefix="deberta.",
    ignore=disentangled.UNREAD,
    respelled=disentangled.PUBLISHED,
)
