"""DeBERTa (He et al. 2021): contents and relative positions apart; q, k and v published as one, head after head."""

from __future__ import annotations

from typing import Any

from openbook.models import disentangled
from openbook.models.config import Config
from openbook.models.disentangled import OWN, SELF
from openbook.models.family import CannotSay, Family, layers_of
from openbook.models.names import Name, fused
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    config.fixed("talking_head", False, False)
    vectors = spec.RelativeVectors(span=disentangled.span_of(config))
    attention = disentangled.attention_of(config, disentangled.terms_of(config), key_bias=False)
    return disentangled.encoder(config, attention, vectors if config.get("relative_attention", False) else None)


def from_spec(model: spec.Model) -> dict[str, Any]:
    vectors = model.stack.relative
    if vectors is not None and not isinstance(vectors, spec.RelativeVectors):
        raise CannotSay("its relative positions are numbers, not vectors")
    return disentangled.write(model) | ({} if vectors is None else {"max_relative_positions": vectors.span})


def names(model: spec.Model) -> tuple[Name, ...]:
    count = layers_of(model.stack, spec.DisentangledAttention)[0].heads
    return (
        Name(f"{SELF}q_bias", f"{OWN}q.bias"),
        Name(f"{SELF}v_bias", f"{OWN}v.bias"),
        *fused(f"{SELF}in_proj", (f"{OWN}q", f"{OWN}k", f"{OWN}v"), (1, 1, 1), groups=count),
        Name(f"{SELF}pos_proj", f"{OWN}position_k"),
        Name(f"{SELF}pos_q_proj", f"{OWN}position_q"),
        *disentangled.shared(model),
    )


FAMILY = Family(
    model_type="deberta",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=disentangled.heads("Deberta"),
    prefix="deberta.",
    ignore=disentangled.UNREAD,
    respelled=disentangled.PUBLISHED,
)
