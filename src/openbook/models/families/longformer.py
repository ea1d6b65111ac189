"""Longformer (Beltagy et al. 2020): an encoder of windows and global tokens, otherwise of RoBERTa's form.

`attention_window` counts both sides together. Which tokens are global, the caller marks (`marks=`); a class head of
rows marks the first token, a span head the question, as published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.families import bert
from openbook.models.family import CannotSay, Family, Heads, labels, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK, write_labels
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    config.raw("onnx_export")
    config.raw("ignore_attention_mask")
    model = bert.to_spec(config)
    layers = len(model.stack.blocks)
    windows = config.raw("attention_window", 512)
    windows = [windows] * layers if isinstance(windows, int) else windows
    if not isinstance(windows, list) or len(windows) != layers or not all(type(w) is int for w in windows):
        raise ConfigError(f"`attention_window` must be a number or {layers} of them: got {windows} ({config.where}).")
    if any(window < 2 or window % 2 for window in windows):
        raise ConfigError(f"Each `attention_window` must be even and at least 2: got {windows} ({config.where}).")
    attention, mlp = (branch for branch in model.stack.blocks[0].branches)
    assert isinstance(attention.layer, spec.Attention)
    plain = attention.layer
    blocks = []
    for window in windows:
        layer = spec.GlobalAttention(
            heads=plain.heads, head_dim=plain.head_dim, window=window // 2 + 1, dropout=plain.dropout
        )
        blocks.append(spec.Block(branches=(replace(attention, layer=layer), mlp)))
    offset = config.get("pad_token_id", 1) + 1
    places = spec.Learned(count=config.size("max_position_embeddings", 512), offset=offset)
    return replace(
        model,
        embed=replace(model.embed, positions=places),
        stack=replace(model.stack, blocks=tuple(blocks)),
        context=places.count - offset,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions, mlp = layers_of(model.stack, spec.GlobalAttention), layers_of(model.stack, spec.MLP)[0]
    places = model.embed.positions
    if not isinstance(places, spec.Learned) or model.embed.norm is None or places.offset < 1:
        raise CannotSay("it needs learned positions after that of padding and a norm after the embedding")
    separator = next((mark.token for head in model.heads if (mark := _marks(head))), None)
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "num_hidden_layers": len(model.stack.blocks),
        "num_attention_heads": attentions[0].heads,
        "intermediate_size": mlp.hidden,
        "hidden_act": spell_activation(mlp.activation),
        "hidden_dropout_prob": model.embed.dropout,
        "attention_probs_dropout_prob": attentions[0].dropout,
        "max_position_embeddings": places.count,
        "pad_token_id": places.offset - 1,
        "type_vocab_size": model.embed.types,
        "layer_norm_eps": model.embed.norm.eps,
        "attention_window": [2 * (layer.window - 1) for layer in attentions],
        "tie_word_embeddings": model.language is None or model.language.tied,
        **({} if separator is None else {"sep_token_id": separator}),
    } | write_labels(model)


def _marks(head: spec.Head) -> spec.MarkBefore | None:
    return head.marks if isinstance(head, spec.Classes) and isinstance(head.marks, spec.MarkBefore) else None


def masked_language(config: Config) -> Heads:
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_eps", 1e-12), bias=True)
    transform = spec.Transform(activation="gelu", norm=norm)
    return (spec.Language(tied=config.get("tie_word_embeddings", True), bias=True, transform=transform),)


def classes(config: Config) -> Heads:
    drop = config.get("hidden_dropout_prob", 0.1)
    return (spec.Pooler(dropout=drop), spec.Classes(count=labels(config), dropout=drop, marks=spec.MarkFirst()))


def token_classes(config: Config) -> Heads:
    return (spec.Classes(count=labels(config), over="tokens", dropout=config.get("hidden_dropout_prob", 0.1)),)


def span(config: Config) -> Heads:
    question = spec.MarkBefore(token=config.get("sep_token_id", 2))
    return (spec.Classes(count=labels(config), over="tokens", name="span", marks=question),)


SELF = "longformer.encoder.layer.{i}.attention.self."
BODY = tuple(
    Name(n.theirs.replace("bert.", "longformer."), n.ours)
    for n in bert.NAMES
    if n.theirs.startswith("bert.") and "pooler" not in n.theirs
)
NAMES = (
    *(Name(f"{SELF}{theirs}_global", f"{BLOCK}.0.layer.global_{theirs[0]}") for theirs in ("query", "key", "value")),
    *BODY,
    Name("lm_head.dense", "heads.language.transform.linear"),
    Name("lm_head.layer_norm", "heads.language.transform.norm"),
    Name("lm_head.decoder.weight", "heads.language.weight"),
    Name("classifier.dense", "heads.pooler.linear"),
    Name("classifier.out_proj", "heads.classes.linear"),
    Name("qa_outputs", "heads.span.linear"),
)


def names(model: spec.Model) -> tuple[Name, ...]:
    """The pooler of the bare model and of the class head are published under other names."""
    own = model.language is not None and not model.language.tied
    bias = Name(f"lm_head.{'decoder.' if own else ''}bias", "heads.language.bias")
    rows = any(isinstance(head, spec.Classes) and head.over == "pooled" for head in model.heads)
    if rows:
        return (bias, *NAMES)
    bare = Name("longformer.pooler.dense", "heads.pooler.linear"), Name("classifier", "heads.classes.linear")
    return (bias, *bare, *NAMES)


FAMILY = Family(
    model_type="longformer",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={
        "LongformerForMaskedLM": masked_language,
        "LongformerModel": bert.pooler,
        "LongformerForSequenceClassification": classes,
        "LongformerForTokenClassification": token_classes,
        "LongformerForQuestionAnswering": span,
    },
    prefix="longformer.",
    ignore=(r".*position_ids", r"lm_head\.(decoder\.weight|decoder\.bias|bias)", r"longformer\.pooler\..*"),
)
