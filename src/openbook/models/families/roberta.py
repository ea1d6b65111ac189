"""RoBERTa (Liu et al. 2019): BERT whose positions start after the padding id's row; its classes read the first token
through a tanh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from openbook.models import encoders
from openbook.models.config import Config
from openbook.models.encoders import IGNORE, body, lm_head, of_classes
from openbook.models.family import CannotSay, Family, Heads
from openbook.models.names import Name
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    return encoders.read_encoder(config, offset=config.get("pad_token_id", 1) + 1)


def from_spec(model: spec.Model) -> dict[str, Any]:
    positions = model.embed.positions
    if not isinstance(positions, spec.Learned) or not positions.offset:
        raise CannotSay("its positions start after the row of the padding id")
    return encoders.write_encoder(model) | {"pad_token_id": positions.offset - 1}


def names(model: spec.Model) -> tuple[Name, ...]:
    return (*body("roberta"), *lm_head(model), *of_classes(model))


def heads(name: str) -> Mapping[str, Callable[[Config], Heads]]:
    """The heads of a family of this kind, whose architectures begin with `name`."""
    return {
        f"{name}ForMaskedLM": encoders.masked_gelu,
        f"{name}Model": encoders.pooler,
        f"{name}ForSequenceClassification": encoders.first_tanh,
        f"{name}ForTokenClassification": encoders.token_classes,
        f"{name}ForQuestionAnswering": encoders.span,
        f"{name}ForMultipleChoice": encoders.choice,
    }


FAMILY = Family(
    model_type="roberta",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=heads("Roberta"),
    prefix="roberta.",
    ignore=IGNORE,
    before=2,
)
