"""Longformer (Beltagy et al. 2020): RoBERTa with windows and global tokens instead of full attention.

`attention_window` counts both sides together. Which tokens are global, the caller marks (`marks=`); where it marks
none, classes of a row mark the first token and answers the question, as published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import encoders
from openbook.models.config import Config
from openbook.models.encoders import IGNORE, body, lm_head, of_classes
from openbook.models.families import roberta
from openbook.models.family import Family, Heads, branches_of, labels, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec


def windows_of(config: Config, layers: int) -> list[int]:
    """`attention_window` of each layer."""
    windows = config.raw("attention_window", 512)
    windows = [windows] * layers if isinstance(windows, int) else windows
    if not isinstance(windows, list) or len(windows) != layers or not all(type(w) is int for w in windows):
        raise ConfigError(f"`attention_window` must be a number or {layers} of them: got {windows} ({config.where}).")
    if any(window < 2 or window % 2 for window in windows):
        raise ConfigError(f"Each `attention_window` must be even and at least 2: got {windows} ({config.where}).")
    return windows


def to_spec(config: Config) -> spec.Model:
    config.inert("onnx_export")
    model = roberta.to_spec(config)
    blocks = []
    for block, window in zip(model.stack.blocks, windows_of(config, len(model.stack.blocks)), strict=True):
        full = block.branches[0].layer
        assert isinstance(full, spec.Attention)
        layer = spec.GlobalAttention(
            heads=full.heads, head_dim=full.head_dim, window=window // 2 + 1, dropout=full.dropout
        )
        blocks.append(replace(block, branches=(replace(block.branches[0], layer=layer), *block.branches[1:])))
    return replace(model, stack=replace(model.stack, blocks=tuple(blocks)))


def from_spec(model: spec.Model) -> dict[str, Any]:
    layers = layers_of(model.stack, spec.GlobalAttention)
    first = layers[0]
    full = spec.Attention(heads=first.heads, kv_heads=first.heads, head_dim=first.head_dim, dropout=first.dropout)
    branches = (replace(branches_of(model.stack)[0], layer=full), *branches_of(model.stack)[1:])
    block = replace(model.stack.blocks[0], branches=branches[:2])
    plain = replace(model, stack=replace(model.stack, blocks=(block,) * len(model.stack.blocks)))
    said = roberta.from_spec(plain) | {"attention_window": [2 * (layer.window - 1) for layer in layers]}
    said.pop("classifier_dropout", None)  # its classes drop at the rate of the model
    if isinstance(model.marks, spec.MarkBefore):
        said["sep_token_id"] = model.marks.token
    return said


def classes(config: Config) -> Heads:
    drop = config.get("hidden_dropout_prob", 0.1)
    transform, marks = spec.Transform(activation="tanh", dropout=drop), spec.MarkFirst()
    return (spec.Classes(count=labels(config), over="first", transform=transform, dropout=drop, marks=marks),)


def token_classes(config: Config) -> Heads:
    return (spec.Classes(count=labels(config), over="tokens", dropout=config.get("hidden_dropout_prob", 0.1)),)


def span(config: Config) -> Heads:
    (head,) = encoders.span(config)
    assert isinstance(head, spec.Classes)
    return (replace(head, marks=spec.MarkBefore(token=config.get("sep_token_id", 2))),)


OTHERS = tuple(
    Name(f"longformer.encoder.layer.{{i}}.attention.self.{theirs}_global", f"{BLOCK}.0.layer.global_{theirs[0]}")
    for theirs in ("query", "key", "value")
)


FAMILY = Family(
    model_type="longformer",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: (*OTHERS, *body("longformer"), *lm_head(model), *of_classes(model)),
    heads={
        "LongformerForMaskedLM": encoders.masked_gelu,
        "LongformerModel": encoders.pooler,
        "LongformerForSequenceClassification": classes,
        "LongformerForTokenClassification": token_classes,
        "LongformerForQuestionAnswering": span,
    },
    prefix="longformer.",
    ignore=(*IGNORE, r"longformer\.pooler\..*"),
)
