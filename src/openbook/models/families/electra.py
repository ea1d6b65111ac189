"""ELECTRA (Clark et al. 2020): BERT with an embedding that may be narrower than the stack, trained to find the words
that a small generator put in the place of others."""

from __future__ import annotations

from typing import Any

from openbook.models import encoders
from openbook.models.config import Config, spell_activation
from openbook.models.encoders import IGNORE, body, of_classes
from openbook.models.family import Family, Heads, none
from openbook.models.names import Name
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    config.fixed("summary_type", "first", "first")
    config.fixed("summary_use_proj", True, True)
    return encoders.read_encoder(config, narrow="embedding_size")


def from_spec(model: spec.Model) -> dict[str, Any]:
    said = {**encoders.write_encoder(model), "embedding_size": model.embed.dim}
    summary = next((head for head in model.heads if isinstance(head, spec.Classes) and head.name == "choice"), None)
    if summary is None or summary.transform is None:
        return said
    act = summary.transform.activation and spell_activation(summary.transform.activation)
    del said["classifier_dropout"]
    return said | {"summary_activation": act, "summary_last_dropout": summary.dropout}


def generator(config: Config) -> Heads:
    """The masked-language head of the generator, as narrow as the embedding."""
    width, dim = config.size("embedding_size", 128), config.size("hidden_size")
    return encoders.masked(config, "gelu", dim=None if width == dim else width)


def discriminator(config: Config) -> Heads:
    """Whether each token was replaced: one logit."""
    transform = spec.Transform(activation=config.activation("hidden_act", "gelu"))
    return (spec.Classes(count=1, over="tokens", transform=transform, name="replaced"),)


def choice(config: Config) -> Heads:
    """One number for each row."""
    silent = "summary_activation" in config.data and config.raw("summary_activation") is None  # null means none
    transform = spec.Transform(activation=None if silent else config.activation("summary_activation", "gelu"))
    drop = config.get("summary_last_dropout", 0.1)
    return (spec.Classes(count=1, over="first", transform=transform, dropout=drop, name="choice"),)


def names(model: spec.Model) -> tuple[Name, ...]:
    return (
        *body("electra"),
        Name("electra.embeddings_project", "widen"),
        Name("generator_predictions.dense", "heads.language.transform.linear"),
        Name("generator_predictions.LayerNorm", "heads.language.transform.norm"),
        Name("generator_lm_head", "heads.language"),
        Name("discriminator_predictions.dense", "heads.replaced.transform.linear"),
        Name("discriminator_predictions.dense_prediction", "heads.replaced.linear"),
        Name("sequence_summary.summary", "heads.choice.transform.linear"),
        *of_classes(model),
    )


FAMILY = Family(
    model_type="electra",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={
        "ElectraForPreTraining": discriminator,
        "ElectraForMaskedLM": generator,
        "ElectraModel": none,
        "ElectraForSequenceClassification": lambda c: encoders.first(c, "gelu"),
        "ElectraForTokenClassification": encoders.token_classes,
        "ElectraForQuestionAnswering": encoders.span,
        "ElectraForMultipleChoice": choice,
    },
    prefix="electra.",
    ignore=(*IGNORE, r"generator_lm_head\.weight"),
)
