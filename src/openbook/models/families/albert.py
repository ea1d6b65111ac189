"""ALBERT (Lan et al. 2019): BERT whose blocks run many times, with a narrow embedding and a sentence-order head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import encoders
from openbook.models.config import Config
from openbook.models.encoders import IGNORE, LABELS, Keys
from openbook.models.family import Family, Heads, labels
from openbook.models.names import Name
from openbook.nn import spec

KEYS = Keys(classes="classifier_dropout_prob")
INERT = ("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks")  # of the first implementation


def to_spec(config: Config) -> spec.Model:
    config.inert(*INERT)
    model = encoders.read_encoder(config, KEYS, narrow="embedding_size", activation="gelu_new", dropout=0.0)
    if model.embed.dim == model.stack.dim:
        raise ConfigError(f"`embedding_size` must not be `hidden_size` here: got {model.embed.dim} ({config.where}).")
    steps, groups = len(model.stack.blocks), config.size("num_hidden_groups", 1)
    inner = config.layers("inner_group_num", 1)
    if groups > steps or (groups == steps and inner > 1):
        raise ConfigError(
            f"`num_hidden_groups` must be below `num_hidden_layers`, or equal with one inner layer: got {groups} and "
            f"{steps}, `inner_group_num` {inner} ({config.where})."
        )
    order = tuple(int(step / (steps / groups)) * inner + layer for step in range(steps) for layer in range(inner))
    blocks = model.stack.blocks[:1] * (groups * inner)
    return replace(model, stack=replace(model.stack, blocks=blocks, order=None if groups == steps else order))


def inner_of(stack: spec.Stack) -> int:
    """The blocks of a group: all before the first one runs again."""
    return 1 if stack.order is None else (*stack.order, 0).index(0, 1)


def from_spec(model: spec.Model) -> dict[str, Any]:
    inner = inner_of(model.stack)
    return encoders.write_encoder(model, KEYS) | {
        "embedding_size": model.embed.dim,
        "num_hidden_layers": len(model.stack.steps) // inner,
        "num_hidden_groups": len(model.stack.blocks) // inner,
        "inner_group_num": inner,
    }


def masked_language(config: Config) -> Heads:
    """The masked-language head, as narrow as the embedding."""
    return encoders.masked(config, config.activation("hidden_act", "gelu_new"), dim=config.size("embedding_size", 128))


def of_row(config: Config, name: str, count: int) -> Heads:
    """Labels of the pooled row."""
    drop = config.get("classifier_dropout_prob", 0.1)
    return (spec.Pooler(), spec.Classes(count=count, dropout=drop, name=name))


def token_classes(config: Config) -> Heads:
    """Labels of each token."""
    drop = config.get("classifier_dropout_prob", 0.1)
    return (spec.Classes(count=labels(config), over="tokens", dropout=drop),)


LAYER = {
    "attention.query": "0.layer.q",
    "attention.key": "0.layer.k",
    "attention.value": "0.layer.v",
    "attention.dense": "0.layer.out",
    "attention.LayerNorm": "0.norm",
    "ffn": "1.layer.up",
    "ffn_output": "1.layer.down",
    "full_layer_layer_norm": "1.norm",
}


def names(model: spec.Model) -> tuple[Name, ...]:
    inner, parts = inner_of(model.stack), []
    for number in range(len(model.stack.blocks)):
        layer = f"albert.encoder.albert_layer_groups.{number // inner}.albert_layers.{number % inner}"
        parts += [Name(f"{layer}.{a}", f"stack.blocks.{number}.branches.{b}") for a, b in LAYER.items()]
    return (
        *parts,
        *encoders.body("albert")[:4],
        Name("albert.encoder.embedding_hidden_mapping_in", "widen"),
        Name("albert.pooler", "heads.pooler.linear"),
        Name("predictions.dense", "heads.language.transform.linear"),
        Name("predictions.LayerNorm", "heads.language.transform.norm"),
        *encoders.beside("predictions", model),
        Name("sop_classifier.classifier", "heads.order.linear"),
        Name("classifier", "heads.classes.linear"),
        *LABELS,
    )


FAMILY = Family(
    model_type="albert",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={
        "AlbertForMaskedLM": masked_language,
        "AlbertModel": encoders.pooler,
        "AlbertForPreTraining": lambda c: masked_language(c) + of_row(c, "order", labels(c)),
        "AlbertForSequenceClassification": lambda c: of_row(c, "classes", labels(c)),
        "AlbertForTokenClassification": token_classes,
        "AlbertForQuestionAnswering": encoders.span,
        "AlbertForMultipleChoice": lambda c: of_row(c, "choice", 1),
    },
    prefix="albert.",
    ignore=IGNORE,
)
