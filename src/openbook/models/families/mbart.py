"""mBART (Liu et al. 2020): BART with the norms before each step, and one more after each stack."""

from __future__ import annotations

from openbook.models.config import Config
from openbook.models.family import Family, none
from openbook.models.pairs import IGNORE, SIZES, language, names, read_pair, write_pair
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    positions = spec.Learned(count=config.size("max_position_embeddings", 1024) + 2, offset=2)
    return read_pair(config, positions=positions, place="pre", embed_norm=True, final_norm=True)


FAMILY = Family(
    model_type="mbart",
    to_spec=to_spec,
    from_spec=write_pair,
    names=names,
    heads={"MBartForConditionalGeneration": language, "MBartModel": none},
    prefix="model.",
    ignore=IGNORE,
    sizes=SIZES,
)
