"""Marian (Junczys-Dowmunt et al. 2018): the 2017 Transformer for translation, its sines and cosines in halves."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.family import Family, none
from openbook.models.pairs import IGNORE, SIZES, language, names, read_pair, write_pair
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    waves = spec.Sinusoidal(halves=True)
    return read_pair(config, positions=waves, place="post", embed_norm=False, final_norm=False)


def from_spec(model: spec.Model) -> dict[str, Any]:
    shared = model.source is not None and model.source.shared
    return write_pair(model) | {"decoder_vocab_size": model.embed.vocab, "share_encoder_decoder_embeddings": shared}


FAMILY = Family(
    model_type="marian",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={"MarianMTModel": language, "MarianModel": none},
    prefix="model.",
    ignore=IGNORE,
    sizes=SIZES,
)
