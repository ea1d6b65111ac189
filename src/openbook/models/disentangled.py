"""What the encoders with disentangled attention share (He et al. 2021): their config.json, heads and names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from openbook.errors import ConfigError
from openbook.models import encoders
from openbook.models.config import Config, spell_activation
from openbook.models.encoders import IGNORE, beside, body, of_classes
from openbook.models.family import CannotSay, Heads, branches_of, labels, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BLOCK, write_labels
from openbook.nn import spec

TERMS = ("c2p", "p2c")


def terms_of(config: Config) -> tuple[str, ...]:
    """`pos_att_type`: a list, or names joined by `|`."""
    said = config.raw("pos_att_type", ())
    said = [part.strip() for part in said.lower().split("|")] if isinstance(said, str) else said
    if not isinstance(said, list | tuple) or any(part not in TERMS for part in said):
        raise ConfigError(f"`pos_att_type` must be of {', '.join(TERMS)}: got {said!r} ({config.where}).")
    return tuple(said)


def attention_of(
    config: Config, terms: Collection[str], *, key_bias: bool = True, shared: bool = False
) -> spec.DisentangledAttention:
    """One layer's attention; without relative positions the `terms` that are named still count in its scale."""
    size, relative = size_of(config), config.get("relative_attention", False)
    return spec.DisentangledAttention(
        heads=config.size("num_attention_heads"),
        head_dim=size,
        content_to_position=relative and "c2p" in terms,
        position_to_content=relative and "p2c" in terms,
        shared=shared,
        key_bias=key_bias,
        scale=None if relative else float((size * (1 + len(terms))) ** -0.5),
        dropout=config.get("attention_probs_dropout_prob", 0.1),
        position_dropout=config.get("hidden_dropout_prob", 0.1),
    )


def encoder(config: Config, attention: spec.DisentangledAttention, vectors: spec.RelativeVectors | None) -> spec.Model:
    """What both generations share, around their attention."""
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_eps", 1e-7), bias=True)
    drop, dim = config.get("hidden_dropout_prob", 0.1), config.size("hidden_size")
    if config.get("embedding_size", dim) != dim or config.get("pooler_hidden_size", dim) != dim:
        raise ConfigError(f"`embedding_size` and `pooler_hidden_size` must be `hidden_size` {dim} ({config.where}).")
    activation = config.activation("hidden_act", "gelu")
    mlp = spec.MLP(hidden=config.size("intermediate_size"), activation=activation, gated=False, bias=True)
    branches = tuple(spec.Branch(layer=p, norm=norm, place="post", dropout=drop) for p in (attention, mlp))
    context, types = config.size("max_position_embeddings", 512), config.get("type_vocab_size", 0)
    places = spec.Learned(count=context) if config.get("position_biased_input", True) else None
    return spec.Model(
        embed=spec.Embed(
            vocab=config.size("vocab_size"), dim=dim, positions=places, types=types, norm=norm, dropout=drop
        ),
        stack=spec.Stack(
            dim=dim, blocks=(spec.Block(branches=branches),) * config.layers("num_hidden_layers"), relative=vectors
        ),
        heads=(),
        context=context,
    )


def size_of(config: Config) -> int:
    """The features of a head: all heads together are as wide as the model."""
    dim, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if dim % heads or config.size("attention_head_size", dim // heads) * heads != dim:
        raise ConfigError(f"`num_attention_heads` must divide `hidden_size`: got {heads} and {dim} ({config.where}).")
    return dim // heads


def span_of(config: Config) -> int:
    """How far relative positions reach."""
    most = config.get("max_relative_positions", -1)
    return most if most > 0 else config.size("max_position_embeddings", 512)


def write(model: spec.Model) -> dict[str, Any]:
    """The keys of both generations."""
    attention = layers_of(model.stack, spec.DisentangledAttention)[0]
    mlp, places = layers_of(model.stack, spec.MLP)[0], model.embed.positions
    if model.embed.norm is None or model.context is None:
        raise CannotSay("it needs a norm after the embedding and a context")
    terms = [*["c2p"] * attention.content_to_position, *["p2c"] * attention.position_to_content]
    if not model.stack.relative and attention.scale is not None:  # what is not there still counts in the scale
        terms = list(TERMS[: round(attention.scale**-2 / attention.head_dim) - 1])
    rows = next((h for h in model.heads if isinstance(h, spec.Classes) and h.over == "first"), None)
    pooler = rows.transform if rows and rows.transform else spec.Transform(activation="gelu")
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "num_hidden_layers": len(model.stack.blocks),
        "num_attention_heads": attention.heads,
        "intermediate_size": mlp.hidden,
        "hidden_act": spell_activation(mlp.activation),
        "hidden_dropout_prob": branches_of(model.stack)[0].dropout,
        "attention_probs_dropout_prob": attention.dropout,
        "max_position_embeddings": model.context,
        "type_vocab_size": model.embed.types,
        "layer_norm_eps": model.embed.norm.eps,
        "relative_attention": model.stack.relative is not None,
        "pos_att_type": terms,
        "position_biased_input": places is not None,
        "pooler_dropout": pooler.dropout,
        "pooler_hidden_act": spell_activation(pooler.activation or "gelu"),
        "pooler_hidden_size": model.stack.dim,
        "tie_word_embeddings": model.language is None or model.language.tied,
        "legacy": True,
        **({} if rows is None else {"cls_dropout": rows.dropout}),
    } | write_labels(model)


def masked_language(config: Config) -> Heads:
    """The published head; `legacy` is how it is spelled, its matrix is tied in the new spelling."""
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_eps", 1e-7), bias=True)
    transform = spec.Transform(activation=config.activation("hidden_act", "gelu"), norm=norm)
    legacy, tied = config.get("legacy", True), config.get("tie_word_embeddings", True)
    tied = tied or not legacy
    return (spec.Language(tied=tied, bias=True, transform=transform),)


def classes(config: Config) -> Heads:
    """Labels of a row, over a pooler of its own."""
    own = config.get("cls_dropout", None, float)
    pooler = spec.Transform(
        activation=config.activation("pooler_hidden_act", "gelu"), dropout=config.get("pooler_dropout", 0.0)
    )
    drop = config.get("hidden_dropout_prob", 0.1) if own is None else own
    return (spec.Classes(count=labels(config), over="first", transform=pooler, dropout=drop),)


def token_classes(config: Config) -> Heads:
    """Labels of each token."""
    return (spec.Classes(count=labels(config), over="tokens", dropout=config.get("hidden_dropout_prob", 0.1)),)


def heads(name: str) -> Mapping[str, Callable[[Config], Heads]]:
    """The heads of a family whose architectures begin with `name`."""
    return {
        f"{name}ForMaskedLM": masked_language,
        f"{name}Model": none,
        f"{name}ForSequenceClassification": classes,
        f"{name}ForTokenClassification": token_classes,
        f"{name}ForQuestionAnswering": encoders.span,
    }


SELF, OWN = "deberta.encoder.layer.{i}.attention.self.", f"{BLOCK}.0.layer."


def shared(model: spec.Model) -> tuple[Name, ...]:
    """The tensors of both generations, attention aside."""
    return (
        Name("deberta.encoder.rel_embeddings", "stack.relative"),
        Name("deberta.encoder.LayerNorm", "stack.relative.norm"),
        *(name for name in body("deberta") if ".self." not in name.theirs),
        Name("cls.predictions.transform.dense", "heads.language.transform.linear"),
        Name("cls.predictions.transform.LayerNorm", "heads.language.transform.norm"),
        *beside("cls.predictions", model),
        *of_classes(model, "pooler.dense", "classifier"),
    )


# How Microsoft's folders name the masked-language head.
PUBLISHED = {
    r"lm_predictions\.lm_head\.(dense|LayerNorm)\.(weight|bias)": r"cls.predictions.transform.\1.\2",
    r"lm_predictions\.lm_head\.bias": "cls.predictions.bias",
}
# Tables and norms of positions that take no part, and heads of the pre-training.
UNREAD = (
    *IGNORE,
    r"(deberta\.)?embeddings\.position_embeddings\.weight",
    r"(deberta\.)?encoder\.LayerNorm\..*",
    r"(lm|mask)_predictions\..*",
)
