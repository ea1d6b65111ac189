"""BART (Lewis et al. 2020): encoder and decoder with learned positions each, norms after each, one token table."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, none
from openbook.models.pairs import IGNORE, SIZES, language, names, read_pair, write_pair
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    positions = spec.Learned(count=config.size("max_position_embeddings", 1024) + 2, offset=2)
    return read_pair(config, positions=positions, place="post", embed_norm=True, final_norm=False)


def from_spec(model: spec.Model) -> dict[str, Any]:
    return write_pair(model)


FAMILY = Family(
    model_type="bart",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={"BartForConditionalGeneration": language, "BartModel": none},
    prefix="model.",
    ignore=IGNORE,
    sizes=SIZES,
)
