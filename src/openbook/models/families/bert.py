"""BERT (Devlin et al. 2018): an encoder with norms after each step, segment types, a pooler, a masked-language head."""

from __future__ import annotations

from openbook.models import encoders
from openbook.models.config import Config
from openbook.models.encoders import IGNORE, beside, body, of_classes
from openbook.models.family import Family, Heads
from openbook.models.names import Name
from openbook.nn import spec


def masked_language(config: Config) -> Heads:
    """The masked-language head."""
    return encoders.masked(config, config.activation("hidden_act", "gelu"))


def next_sentence(config: Config) -> Heads:  # noqa: ARG001
    """Whether the second segment follows the first."""
    return (spec.Pooler(), spec.Classes(count=2, name="next"))


def pretraining(config: Config) -> Heads:
    """Both objectives of the paper."""
    return masked_language(config) + next_sentence(config)


def names(model: spec.Model) -> tuple[Name, ...]:
    return (
        *body("bert"),
        Name("cls.predictions.transform.dense", "heads.language.transform.linear"),
        Name("cls.predictions.transform.LayerNorm", "heads.language.transform.norm"),
        *beside("cls.predictions", model),
        Name("cls.seq_relationship", "heads.next.linear"),
        *of_classes(model),
    )


FAMILY = Family(
    model_type="bert",
    to_spec=encoders.read_encoder,
    from_spec=encoders.write_encoder,
    names=names,
    heads={
        "BertForMaskedLM": masked_language,
        "BertModel": encoders.pooler,
        "BertForPreTraining": pretraining,
        "BertForNextSentencePrediction": next_sentence,
        "BertForSequenceClassification": encoders.classes,
        "BertForTokenClassification": encoders.token_classes,
        "BertForQuestionAnswering": encoders.span,
        "BertForMultipleChoice": encoders.choice,
    },
    prefix="bert.",
    ignore=IGNORE,
)
