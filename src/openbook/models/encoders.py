"""What the encoders in the line of BERT share: how their config.json is read and written, their heads, and names.

Norms after each step, learned positions, biases everywhere (Devlin et al. 2018). What a family has of its own, such as
where its positions start or what stands before its classes, its own file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Heads, branches_of, labels, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK, write_labels
from openbook.nn import spec


@dataclass(frozen=True, kw_only=True)
class Keys:
    """How a config.json spells what all of them have; None: it has no such key, and the default holds."""

    dim: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "intermediate_size"
    activation: str = "hidden_act"
    dropout: str = "hidden_dropout_prob"
    attention_dropout: str = "attention_probs_dropout_prob"
    eps: str | None = "layer_norm_eps"
    types: str | None = "type_vocab_size"
    classes: str | None = "classifier_dropout"


KEYS = Keys()
OWN_RATE = ("classes", "choice", "order")  # the heads that drop at the rate of `Keys.classes`


def norm_of(config: Config, keys: Keys = KEYS) -> spec.Norm:
    """The one kind of norm that these models have."""
    eps = 1e-12 if keys.eps is None else config.get(keys.eps, 1e-12)
    return spec.Norm(kind="layer", eps=eps, bias=True)


def read_encoder(
    config: Config,
    keys: Keys = KEYS,
    *,
    offset: int = 0,
    narrow: str | None = None,
    activation: str = "gelu",
    dropout: float = 0.1,
    relative: bool = False,
) -> spec.Model:
    """The model of a config.json without heads.

    `offset`: the row of the first token's position. `narrow`: the key of the embedding's width, where it has one of its
    own. `activation` and `dropout` are the family's defaults. `relative`: attention adds the stack's relative bias.
    """
    dim, heads = config.size(keys.dim), config.size(keys.heads)
    if dim % heads:
        raise ConfigError(f"`{keys.heads}` must divide `{keys.dim}`: got {heads} and {dim} ({config.where}).")
    config.fixed("position_embedding_type", "absolute", "absolute")
    config.fixed("is_decoder", False, False)
    config.fixed("add_cross_attention", False, False)
    norm, drop = norm_of(config, keys), config.get(keys.dropout, dropout)
    attention = spec.Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        pattern=spec.Pattern(causal=False),
        relative=relative,
        bias=True,
        out_bias=True,
        dropout=config.get(keys.attention_dropout, dropout),
    )
    hidden, act = config.size(keys.hidden), config.activation(keys.activation, activation)
    mlp = spec.MLP(hidden=hidden, activation=act, gated=False, bias=True)
    parts = (attention, mlp)
    block = spec.Block(branches=tuple(spec.Branch(layer=p, norm=norm, place="post", dropout=drop) for p in parts))
    count = config.size("max_position_embeddings", 512)
    if count <= offset:
        raise ConfigError(
            f"`max_position_embeddings` must be above {offset}, the first token's row: got {count} ({config.where})."
        )
    embed = spec.Embed(
        vocab=config.size("vocab_size"),
        dim=config.size(narrow, 128) if narrow else dim,
        positions=spec.Learned(count=count, offset=offset),
        types=0 if keys.types is None else config.size(keys.types, 2),
        norm=norm,
        dropout=drop,
    )
    return spec.Model(
        embed=embed,
        stack=spec.Stack(dim=dim, blocks=(block,) * config.layers(keys.layers)),
        heads=(),
        context=count - offset,
    )


def write_encoder(model: spec.Model, keys: Keys = KEYS) -> dict[str, Any]:
    """The keys of config.json that all of them have. What a family cannot say shows when it is read back."""
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    if not isinstance(model.embed.positions, spec.Learned) or model.embed.norm is None:
        raise CannotSay("it needs learned positions and a norm after the embedding")
    optional = {keys.types: model.embed.types, keys.eps: model.embed.norm.eps, keys.classes: _dropped(model)}
    return {
        "vocab_size": model.embed.vocab,
        keys.dim: model.stack.dim,
        keys.layers: len(model.stack.steps),
        keys.heads: attention.heads,
        keys.hidden: mlp.hidden,
        keys.activation: spell_activation(mlp.activation),
        keys.dropout: branches_of(model.stack)[0].dropout,
        keys.attention_dropout: attention.dropout,
        "max_position_embeddings": model.embed.positions.count,
        **{key: value for key, value in optional.items() if key is not None and value is not None},
        "tie_word_embeddings": model.language is None or model.language.tied,
    } | write_labels(model)


def _dropped(model: spec.Model) -> float | None:
    """What the class heads drop."""
    return next((h.dropout for h in model.heads if isinstance(h, spec.Classes) and h.name in OWN_RATE), None)


# ------------------------------------------------------------------------------------------------ heads


def masked(config: Config, activation: str, keys: Keys = KEYS, dim: int | None = None) -> Heads:
    """A masked-language head with its transform; `dim` where the embedding is narrower than the stack."""
    transform = spec.Transform(activation=activation, norm=norm_of(config, keys), dim=dim)
    return (spec.Language(tied=config.get("tie_word_embeddings", True), bias=True, transform=transform),)


def masked_gelu(config: Config) -> Heads:
    """The same, whatever activation the layers have."""
    return masked(config, "gelu")


def pooler(config: Config) -> Heads:  # noqa: ARG001
    """The bare model still has its pooler."""
    return (spec.Pooler(),)


def dropout(config: Config) -> float:
    """What the class heads drop: their own rate, else that of the model."""
    own = config.get("classifier_dropout", None, float)
    return config.get("hidden_dropout_prob", 0.1) if own is None else own


def first(config: Config, activation: str) -> Heads:
    """Labels of a row, read off its first token through a transform."""
    drop = dropout(config)
    transform = spec.Transform(activation=activation, dropout=drop)
    return (spec.Classes(count=labels(config), over="first", transform=transform, dropout=drop),)


def first_tanh(config: Config) -> Heads:
    """The same with a tanh."""
    return first(config, "tanh")


def classes(config: Config) -> Heads:
    """Labels of a whole row."""
    return (spec.Pooler(), spec.Classes(count=labels(config), dropout=dropout(config)))


def choice(config: Config) -> Heads:
    """One number for each row: how well this choice fits."""
    return (spec.Pooler(), spec.Classes(count=1, name="choice", dropout=dropout(config)))


def token_classes(config: Config) -> Heads:
    """Labels of each token."""
    return (spec.Classes(count=labels(config), over="tokens", dropout=dropout(config)),)


def span(config: Config) -> Heads:
    """Start and end of an answer."""
    return (spec.Classes(count=labels(config), over="tokens", name="span"),)


# ------------------------------------------------------------------------------------------------ names


def body(root: str) -> tuple[Name, ...]:
    """The tensors of embedding, blocks and pooler under `root`, and of the heads that all spell alike."""
    e, layer = f"{root}.embeddings.", f"{root}.encoder.layer.{{i}}."
    return (
        Name(f"{e}word_embeddings", "embed.tokens"),
        Name(f"{e}position_embeddings", "embed.positions"),
        Name(f"{e}token_type_embeddings", "embed.types"),
        Name(f"{e}LayerNorm", "embed.norm"),
        Name(f"{layer}attention.self.query", f"{BLOCK}.0.layer.q"),
        Name(f"{layer}attention.self.key", f"{BLOCK}.0.layer.k"),
        Name(f"{layer}attention.self.value", f"{BLOCK}.0.layer.v"),
        Name(f"{layer}attention.output.dense", f"{BLOCK}.0.layer.out"),
        Name(f"{layer}attention.output.LayerNorm", f"{BLOCK}.0.norm"),
        Name(f"{layer}intermediate.dense", f"{BLOCK}.1.layer.up"),
        Name(f"{layer}output.dense", f"{BLOCK}.1.layer.down"),
        Name(f"{layer}output.LayerNorm", f"{BLOCK}.1.norm"),
        Name(f"{root}.pooler.dense", "heads.pooler.linear"),
    )


LABELS = (Name("classifier", "heads.choice.linear"), Name("qa_outputs", "heads.span.linear"))


def of_classes(
    model: spec.Model, dense: str = "classifier.dense", out: str = "classifier.out_proj"
) -> tuple[Name, ...]:
    """The class head's tensors: one linear map `classifier`, or two where a transform stands before it."""
    two = any(isinstance(head, spec.Classes) and head.name == "classes" and head.transform for head in model.heads)
    plain = (Name("classifier", "heads.classes.linear"), *LABELS)
    return (Name(dense, "heads.classes.transform.linear"), Name(out, "heads.classes.linear"), *LABELS) if two else plain


def beside(head: str, model: spec.Model) -> tuple[Name, ...]:
    """The masked-language head's matrix and bias under `head`.

    A head of its own has its bias beside its weight; the one outside of it then computes nothing.
    """
    own = model.language is not None and not model.language.tied
    return (
        Name(f"{head}.decoder.weight", "heads.language.weight"),
        Name(f"{head}.{'decoder.' if own else ''}bias", "heads.language.bias"),
    )


def lm_head(model: spec.Model) -> tuple[Name, ...]:
    """The masked-language head as RoBERTa's line publishes it."""
    return (
        Name("lm_head.dense", "heads.language.transform.linear"),
        Name("lm_head.layer_norm", "heads.language.transform.norm"),
        *beside("lm_head", model),
    )


# Tensors that hold nothing to load: tables of positions, and what is tied.
IGNORE = (r".*position_ids", r"(lm_head|predictions|cls\.predictions)\.(decoder\.weight|decoder\.bias|bias)")
