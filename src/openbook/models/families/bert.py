"""BERT (Devlin et al. 2018): an encoder with norms after each step, segment types, a pooler, a masked-language head."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Family, Heads, branches_of, labels, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK, write_labels
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    dim, heads, layers = (
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        config.layers("num_hidden_layers"),
    )
    if dim % heads:
        raise ConfigError(f"`num_attention_heads` must divide `hidden_size`: got {heads} and {dim} ({config.where}).")
    config.fixed("position_embedding_type", "absolute", "absolute")
    config.fixed("is_decoder", False, False)
    config.fixed("add_cross_attention", False, False)
    config.raw("classifier_dropout")
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_eps", 1e-12), bias=True)
    drop = config.get("hidden_dropout_prob", 0.1)
    attention = spec.Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        pattern=spec.Pattern(causal=False),
        bias=True,
        out_bias=True,
        dropout=config.get("attention_probs_dropout_prob", 0.1),
    )
    hidden, activation = config.size("intermediate_size"), config.activation("hidden_act", "gelu")
    mlp = spec.MLP(hidden=hidden, activation=activation, gated=False, bias=True)
    parts = (attention, mlp)
    block = spec.Block(branches=tuple(spec.Branch(layer=p, norm=norm, place="post", dropout=drop) for p in parts))
    context = config.size("max_position_embeddings", 512)
    embed = spec.Embed(
        vocab=config.size("vocab_size"),
        dim=dim,
        positions=spec.Learned(count=context),
        types=config.size("type_vocab_size", 2),
        norm=norm,
        dropout=drop,
    )
    return spec.Model(embed=embed, stack=spec.Stack(dim=dim, blocks=(block,) * layers), heads=(), context=context)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    if not isinstance(model.embed.positions, spec.Learned) or model.embed.norm is None:
        raise CannotSay("it needs learned positions and a norm after the embedding")
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "num_hidden_layers": len(model.stack.blocks),
        "num_attention_heads": attention.heads,
        "intermediate_size": mlp.hidden,
        "hidden_act": spell_activation(mlp.activation),
        "hidden_dropout_prob": branches_of(model.stack)[0].dropout,
        "attention_probs_dropout_prob": attention.dropout,
        "max_position_embeddings": model.embed.positions.count,
        "type_vocab_size": model.embed.types,
        "layer_norm_eps": model.embed.norm.eps,
        "classifier_dropout": next((head.dropout for head in model.heads if isinstance(head, spec.Classes)), None),
        "tie_word_embeddings": model.language is None or model.language.tied,
    } | write_labels(model)


def masked_language(config: Config) -> Heads:
    """The masked-language head."""
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_eps", 1e-12), bias=True)
    transform = spec.Transform(activation=config.activation("hidden_act", "gelu"), norm=norm)
    return (spec.Language(tied=config.get("tie_word_embeddings", True), bias=True, transform=transform),)


def pooler(config: Config) -> Heads:  # noqa: ARG001
    """The bare model still has its pooler."""
    return (spec.Pooler(),)


def dropout(config: Config) -> float:
    """What the class heads drop: their own rate, else that of the model."""
    own = config.get("classifier_dropout", None, float)
    return config.get("hidden_dropout_prob", 0.1) if own is None else own


def classes(config: Config) -> Heads:
    """Labels of a whole row."""
    return (spec.Pooler(), spec.Classes(count=labels(config), dropout=dropout(config)))


def token_classes(config: Config) -> Heads:
    """Labels of each token."""
    return (spec.Classes(count=labels(config), over="tokens", dropout=dropout(config)),)


def span(config: Config) -> Heads:
    """Start and end of an answer."""
    return (spec.Classes(count=labels(config), over="tokens", name="span"),)


def next_sentence(config: Config) -> Heads:  # noqa: ARG001
    """Whether the second segment follows the first."""
    return (spec.Pooler(), spec.Classes(count=2, name="next"))


def pretraining(config: Config) -> Heads:
    """Both objectives of the paper."""
    return masked_language(config) + next_sentence(config)


E, L = "bert.embeddings.", "bert.encoder.layer.{i}."
NAMES = (
    Name(f"{E}word_embeddings", "embed.tokens"),
    Name(f"{E}position_embeddings", "embed.positions"),
    Name(f"{E}token_type_embeddings", "embed.types"),
    Name(f"{E}LayerNorm", "embed.norm"),
    Name(f"{L}attention.self.query", f"{BLOCK}.0.layer.q"),
    Name(f"{L}attention.self.key", f"{BLOCK}.0.layer.k"),
    Name(f"{L}attention.self.value", f"{BLOCK}.0.layer.v"),
    Name(f"{L}attention.output.dense", f"{BLOCK}.0.layer.out"),
    Name(f"{L}attention.output.LayerNorm", f"{BLOCK}.0.norm"),
    Name(f"{L}intermediate.dense", f"{BLOCK}.1.layer.up"),
    Name(f"{L}output.dense", f"{BLOCK}.1.layer.down"),
    Name(f"{L}output.LayerNorm", f"{BLOCK}.1.norm"),
    Name("bert.pooler.dense", "heads.pooler.linear"),
    Name("cls.predictions.transform.dense", "heads.language.transform.linear"),
    Name("cls.predictions.transform.LayerNorm", "heads.language.transform.norm"),
    Name("cls.predictions.decoder.weight", "heads.language.weight"),
    Name("cls.seq_relationship", "heads.next.linear"),
    Name("classifier", "heads.classes.linear"),
    Name("qa_outputs", "heads.span.linear"),
)


def names(model: spec.Model) -> tuple[Name, ...]:
    """A head of its own has its bias beside its weight; `cls.predictions.bias` then computes nothing."""
    own = model.language is not None and not model.language.tied
    return (*NAMES, Name(f"cls.predictions.{'decoder.' if own else ''}bias", "heads.language.bias"))


FAMILY = Family(
    model_type="bert",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={
        "BertForMaskedLM": masked_language,
        "BertModel": pooler,
        "BertForPreTraining": pretraining,
        "BertForNextSentencePrediction": next_sentence,
        "BertForSequenceClassification": classes,
        "BertForTokenClassification": token_classes,
        "BertForQuestionAnswering": span,
    },
    prefix="bert.",
    ignore=(r".*position_ids", r"cls\.predictions\.(decoder\.weight|decoder\.bias|bias)"),
)
