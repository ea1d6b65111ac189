"""Pegasus (Zhang et al. 2020): the norms before each step and after each stack, sines and cosines in halves."""

from __future__ import annotations

from openbook.models.config import Config
from openbook.models.family import Family, none
from openbook.models.pairs import IGNORE, SIZES, language, names, read_pair, write_pair
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    waves = spec.Sinusoidal(halves=True)
    return read_pair(config, positions=waves, place="pre", embed_norm=False, final_norm=True)


FAMILY = Family(
    model_type="pegasus",
    to_spec=to_spec,
    from_spec=write_pair,
    names=names,
    heads={"PegasusForConditionalGeneration": language, "PegasusModel": none},
    prefix="model.",
    ignore=IGNORE,
    sizes=SIZES,
)
