"""What no published family can say: the spec itself, written into config.json as `model_type: openbook`."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.names import Name
from openbook.nn import spec
from openbook.nn.plain import from_plain, to_plain


def to_spec(config: Config) -> spec.Model:
    model: spec.Model = from_plain(config.raw("spec"), spec.Model, f"`spec` of {config.where}")
    return model


def from_spec(model: spec.Model) -> dict[str, Any]:
    return {"spec": to_plain(model)}


FAMILY = Family(
    model_type="openbook",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: (Name("{all}", "{all}"),),
    heads={},
    sizes={},
)
