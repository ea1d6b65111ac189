"""MPNet (Song et al. 2020): BERT without segment types, with RoBERTa's positions and T5's relative bias everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import encoders
from openbook.models.config import Config
from openbook.models.encoders import IGNORE, Keys, body, lm_head, of_classes
from openbook.models.families.roberta import heads
from openbook.models.family import Family, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = Keys(types=None, classes=None)
OFFSET = 2  # the padding id is 1, whatever the config.json says


def to_spec(config: Config) -> spec.Model:
    config.fixed("relative_attention_num_buckets", 32, 32)
    model = encoders.read_encoder(config, KEYS, offset=OFFSET, relative=True)
    rule = spec.Relative(heads=layers_of(model.stack, spec.Attention)[0].heads, bidirectional=True)
    return replace(model, stack=replace(model.stack, relative=rule))


def from_spec(model: spec.Model) -> dict[str, Any]:
    return encoders.write_encoder(model, KEYS)


L = "mpnet.encoder.layer.{i}.attention."
OWN = (
    Name(f"{L}attn.q", f"{BLOCK}.0.layer.q"),
    Name(f"{L}attn.k", f"{BLOCK}.0.layer.k"),
    Name(f"{L}attn.v", f"{BLOCK}.0.layer.v"),
    Name(f"{L}attn.o", f"{BLOCK}.0.layer.out"),
    Name(f"{L}LayerNorm", f"{BLOCK}.0.norm"),
    Name("mpnet.encoder.relative_attention_bias", "stack.relative"),
)


def names(model: spec.Model) -> tuple[Name, ...]:
    return (*OWN, *body("mpnet"), *lm_head(model), *of_classes(model))


FAMILY = Family(
    model_type="mpnet",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=heads("MPNet"),
    prefix="mpnet.",
    ignore=IGNORE,
    before=OFFSET,
)
