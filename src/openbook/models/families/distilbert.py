"""DistilBERT (Sanh et al. 2019): half of BERT's blocks, no segment types, no pooler."""

from __future__ import annotations

from typing import Any

from openbook.models import encoders
from openbook.models.config import Config
from openbook.models.encoders import Keys
from openbook.models.family import SIZES, Family, Heads, labels, none
from openbook.models.names import Name
from openbook.models.parts import block_names
from openbook.nn import spec

PLAIN = {"dim": "dim", "layers": "n_layers", "heads": "n_heads", "hidden": "hidden_dim"}
DROPS = {"activation": "activation", "dropout": "dropout", "attention_dropout": "attention_dropout"}
KEYS = Keys(**PLAIN, **DROPS, eps=None, types=None, classes=None)


def to_spec(config: Config) -> spec.Model:
    config.inert("sinusoidal_pos_embds", "tie_weights_")  # how the positions began; the published tensor holds them
    return encoders.read_encoder(config, KEYS)


def from_spec(model: spec.Model) -> dict[str, Any]:
    drops = {"span": "qa_dropout", "classes": "seq_classif_dropout", "choice": "seq_classif_dropout"}
    heads = [head for head in model.heads if isinstance(head, spec.Classes) and head.name in drops]
    said = {drops[head.name]: head.dropout for head in heads if head.name == "span" or head.over == "first"}
    return encoders.write_encoder(model, KEYS) | said


def masked_language(config: Config) -> Heads:
    """The masked-language head."""
    return encoders.masked(config, config.activation("activation", "gelu"), KEYS)


def of_row(config: Config, name: str, count: int) -> Heads:
    """Labels of a row, read off its first token through a relu."""
    drop, transform = config.get("seq_classif_dropout", 0.2), spec.Transform(activation="relu")
    return (spec.Classes(count=count, over="first", transform=transform, dropout=drop, name=name),)


def of_tokens(config: Config, name: str, drop: float) -> Heads:
    """Labels of each token."""
    return (spec.Classes(count=labels(config), over="tokens", dropout=drop, name=name),)


L = "distilbert.transformer.layer.{i}."
NAMES = (
    Name("distilbert.embeddings.word_embeddings", "embed.tokens"),
    Name("distilbert.embeddings.position_embeddings", "embed.positions"),
    Name("distilbert.embeddings.LayerNorm", "embed.norm"),
    *block_names(f"{L}attention.", q="q_lin", k="k_lin", v="v_lin", out="out_lin"),
    *block_names(L, norm1="sa_layer_norm", norm2="output_layer_norm", up="ffn.lin1", down="ffn.lin2"),
    Name("vocab_transform", "heads.language.transform.linear"),
    Name("vocab_layer_norm", "heads.language.transform.norm"),
    Name("vocab_projector", "heads.language"),
    Name("pre_classifier", "heads.classes.transform.linear"),
    Name("pre_classifier", "heads.choice.transform.linear"),
    Name("classifier", "heads.classes.linear"),
    *encoders.LABELS,
)


FAMILY = Family(
    model_type="distilbert",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={
        "DistilBertForMaskedLM": masked_language,
        "DistilBertModel": none,
        "DistilBertForSequenceClassification": lambda c: of_row(c, "classes", labels(c)),
        "DistilBertForTokenClassification": lambda c: of_tokens(c, "classes", c.get("dropout", 0.1)),
        "DistilBertForQuestionAnswering": lambda c: of_tokens(c, "span", c.get("qa_dropout", 0.1)),
        "DistilBertForMultipleChoice": lambda c: of_row(c, "choice", 1),
    },
    prefix="distilbert.",
    ignore=(r".*position_ids", r"vocab_projector\.weight"),
    sizes={**SIZES, **PLAIN},
)
