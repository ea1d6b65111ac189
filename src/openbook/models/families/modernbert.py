"""ModernBERT (Warner et al. 2024): an encoder of today's parts: rotary positions, norms before, gated feed-forward
layers without biases, and attention over a window in two of three layers, with a base of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config, read_rope, write_rope
from openbook.models.family import SIZES, CannotSay, Family, Heads, labels, layers_of, none
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK, block_names, windows, write_windows
from openbook.nn import spec

# Of training and of its own kernels.
INERT = (
    *("initializer_cutoff_factor", "deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index"),
    *("reference_compile", "repad_logits_with_grad", "layer_norm_eps", "position_embedding_type"),
)
KEYS = {word: SIZES[word] for word in ("vocab", "dim", "layers", "heads", "context", "tied")}
NORM: fields.Fields = {"eps": ("norm_eps", 1e-5), "bias": ("norm_bias", False)}
TABLE: fields.Table = {
    spec.Attention: {"dropout": ("attention_dropout", 0.0), **fields.biases("attention_bias", False)},
    spec.MLP: {
        "hidden": "intermediate_size",
        "activation": ("hidden_activation", "gelu"),
        "bias": ("mlp_bias", False),
        "dropout": ("mlp_dropout", 0.0),
    },
    spec.Norm: NORM,
    spec.Embed: {"dropout": ("embedding_dropout", 0.0)},
}
TRANSFORM: fields.Fields = {"activation": ("classifier_activation", "gelu"), "bias": ("classifier_bias", False)}
THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
POOLING: dict[str, Literal["first", "mean"]] = {"cls": "first", "mean": "mean"}


def to_spec(config: Config) -> spec.Model:
    config.inert(*INERT)
    size, said = classic.read_sizes(config, KEYS, context=8192), fields.read(config, TABLE)
    context, every = size.context or 8192, config.size("global_attn_every_n_layers", 3)
    local = config.size("local_attention", 128) // 2 + 1
    reach = windows(config, size.layers, lambda number: number % every > 0, local)
    ropes = {kind: read_rope(config, size.head_dim, context, kind, config.get(*old)) for kind, old in THETA.items()}
    norm, mlp = spec.Norm(kind="layer", **said[spec.Norm]), spec.MLP(**said[spec.MLP])
    attention = replace(size.attention, **said[spec.Attention])

    def block(number: int, window: int | None) -> spec.Block:
        rope = ropes["full_attention" if window is None else "sliding_attention"]
        layer = replace(attention, pattern=spec.Pattern(causal=False, window=window), rope=rope)
        first = spec.Branch(layer=layer, norm=norm if number else None, dropout=attention.dropout)
        return spec.Block(branches=(first, spec.Branch(layer=mlp, norm=norm)))

    blocks = tuple(block(number, window) for number, window in enumerate(reach))
    return size.model(blocks, norm, replace(size.embed(**said[spec.Embed]), norm=norm))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions, kinds = layers_of(model.stack, spec.Attention), write_windows(model)["layer_types"]
    if any(layer.rope is None for layer in attentions):
        raise CannotSay("it needs attention with rotary positions")
    local = next((layer.pattern.window for layer in attentions if layer.pattern.window is not None), None)
    ropes = {kind: write_rope(layer.rope, layer.head_dim) for kind, layer in zip(kinds, attentions, strict=True)}
    said = classic.write_sizes(model, KEYS) | {"layer_types": kinds, "rope_parameters": ropes}
    said |= {} if local is None else {"local_attention": 2 * (local - 1)}
    for head in model.heads:
        said |= _head_says(head)
    return said | fields.write(model, TABLE)


def _head_says(head: spec.Head) -> dict[str, Any]:
    if not isinstance(head, spec.Language | spec.Classes) or head.transform is None or not head.transform.activation:
        raise CannotSay("its heads have a transform")
    said = fields.say(head.transform, TRANSFORM)
    if isinstance(head, spec.Language):
        return said | {"decoder_bias": head.bias}
    return said | {"classifier_dropout": head.dropout, "classifier_pooling": "mean" if head.over == "mean" else "cls"}


def transform(config: Config) -> spec.Transform:
    """What stands before every head."""
    norm = spec.Norm(kind="layer", **fields.take(config, NORM))
    return spec.Transform(norm=norm, **fields.take(config, TRANSFORM))


def masked_language(config: Config) -> Heads:
    """The masked-language head."""
    tied, bias = config.get("tie_word_embeddings", True), config.get("decoder_bias", True)
    return (spec.Language(tied=tied, bias=bias, transform=transform(config)),)


def classes(config: Config, name: str, count: int, tokens: bool = False) -> Heads:
    """Labels of each token, or of a row, read off its first token or its mean."""
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in POOLING:
        raise ConfigError(f"`classifier_pooling` is 'cls' or 'mean': got {pooling!r} ({config.where}).")
    over, drop = POOLING[pooling], config.get("classifier_dropout", 0.0)
    head = spec.Classes(count=count, over=over, transform=transform(config), dropout=drop, name=name)
    return (replace(head, over="tokens") if tokens else head,)


L = "model.layers.{i}."
NAMES = (
    Name("model.embeddings.tok_embeddings", "embed.tokens"),
    Name("model.embeddings.norm", "embed.norm"),
    Name("model.final_norm", "stack.final_norm"),
    *fused(f"{L}attn.Wqkv", classic.QKV, (1, 1, 1)),
    *block_names(L, norm1="attn_norm", norm2="mlp_norm", out="attn.Wo", down="mlp.Wo"),
    *fused(f"{L}mlp.Wi", (f"{BLOCK}.1.layer.gate", f"{BLOCK}.1.layer.up"), (1, 1)),
    Name("decoder", "heads.language"),
    *(
        name
        for head in ("language", "classes", "span", "choice")
        for name in (
            Name("head.dense", f"heads.{head}.transform.linear"),
            Name("head.norm", f"heads.{head}.transform.norm"),
            Name("classifier", f"heads.{head}.linear"),
        )
    ),
)


FAMILY = Family(
    model_type="modernbert",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={
        "ModernBertForMaskedLM": masked_language,
        "ModernBertModel": none,
        "ModernBertForSequenceClassification": lambda c: classes(c, "classes", labels(c)),
        "ModernBertForTokenClassification": lambda c: classes(c, "classes", labels(c), tokens=True),
        "ModernBertForQuestionAnswering": lambda c: classes(c, "span", labels(c), tokens=True),
        "ModernBertForMultipleChoice": lambda c: classes(c, "choice", 1),
    },
    prefix="model.",
    ignore=(r"decoder\.weight",),
)
