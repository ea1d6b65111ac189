"""ModernBERT (Warner et al. 2024): an encoder of today's parts: rotary positions, norms before, gated feed-forward
layers without biases, and attention over a window in two of three layers, with a base of its own."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope, spell_activation, write_rope
from openbook.models.family import CannotSay, Family, Heads, branches_of, labels, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BLOCK, windows, write_labels
from openbook.nn import spec

# Of training and of its own kernels.
INERT = (
    "initializer_cutoff_factor",
    "deterministic_flash_attn",
    "sparse_prediction",
    "sparse_pred_ignore_index",
    "reference_compile",
    "repad_logits_with_grad",
    "layer_norm_eps",
    "position_embedding_type",
)
THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
POOLING = {"cls": "first", "mean": "mean"}


def norm_of(config: Config) -> spec.Norm:
    """The one kind of norm there is."""
    return spec.Norm(kind="layer", eps=config.get("norm_eps", 1e-5), bias=config.get("norm_bias", False))


def to_spec(config: Config) -> spec.Model:
    for key in INERT:
        config.raw(key)
    dim, heads, layers = (
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        config.layers("num_hidden_layers"),
    )
    if dim % heads:
        raise ConfigError(f"`num_attention_heads` must divide `hidden_size`: got {heads} and {dim} ({config.where}).")
    context, every = config.size("max_position_embeddings", 8192), config.size("global_attn_every_n_layers", 3)
    reach = windows(config, layers, lambda number: number % every > 0, config.size("local_attention", 128) // 2 + 1)
    ropes = {kind: read_rope(config, dim // heads, context, kind, config.get(*old)) for kind, old in THETA.items()}
    bias, drop, norm = config.get("attention_bias", False), config.get("attention_dropout", 0.0), norm_of(config)
    mlp = spec.MLP(
        hidden=config.size("intermediate_size"),
        activation=config.activation("hidden_activation", "gelu"),
        bias=config.get("mlp_bias", False),
        dropout=config.get("mlp_dropout", 0.0),
    )

    def block(number: int, window: int | None) -> spec.Block:
        attention = spec.Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=dim // heads,
            pattern=spec.Pattern(causal=False, window=window),
            rope=ropes["full_attention" if window is None else "sliding_attention"],
            bias=bias,
            out_bias=bias,
            dropout=drop,
        )
        first = spec.Branch(layer=attention, norm=norm if number else None, dropout=drop)
        return spec.Block(branches=(first, spec.Branch(layer=mlp, norm=norm)))

    embed = spec.Embed(
        vocab=config.size("vocab_size"), dim=dim, norm=norm, dropout=config.get("embedding_dropout", 0.0)
    )
    blocks = tuple(block(number, window) for number, window in enumerate(reach))
    return spec.Model(embed=embed, stack=spec.Stack(dim=dim, blocks=blocks, final_norm=norm), heads=(), context=context)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions, mlp = layers_of(model.stack, spec.Attention), layers_of(model.stack, spec.MLP)[0]
    norm = model.stack.final_norm
    if norm is None or any(layer.rope is None for layer in attentions):
        raise CannotSay("it needs attention with rotary positions and a final norm")
    kinds = ["full_attention" if layer.pattern.window is None else "sliding_attention" for layer in attentions]
    local = next((layer.pattern.window for layer in attentions if layer.pattern.window is not None), None)
    ropes = {kind: write_rope(layer.rope, layer.head_dim) for kind, layer in zip(kinds, attentions, strict=True)}
    said = {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": len(model.stack.steps),
        "num_attention_heads": attentions[0].heads,
        "hidden_activation": spell_activation(mlp.activation),
        "max_position_embeddings": model.context,
        "norm_eps": norm.eps,
        "norm_bias": norm.bias,
        "attention_bias": attentions[0].bias,
        "attention_dropout": branches_of(model.stack)[0].dropout,
        "layer_types": kinds,
        "rope_parameters": ropes,
        "embedding_dropout": model.embed.dropout,
        "mlp_bias": mlp.bias,
        "mlp_dropout": mlp.dropout,
        "tie_word_embeddings": model.language is None or model.language.tied,
    }
    said |= {} if local is None else {"local_attention": 2 * (local - 1)}
    for head in model.heads:
        said |= _head_says(head)
    return said | write_labels(model)


def _head_says(head: spec.Head) -> dict[str, Any]:
    if not isinstance(head, spec.Language | spec.Classes) or head.transform is None or not head.transform.activation:
        raise CannotSay("its heads have a transform")
    act = spell_activation(head.transform.activation)
    said: dict[str, Any] = {"classifier_activation": act, "classifier_bias": head.transform.bias}
    if isinstance(head, spec.Language):
        return said | {"decoder_bias": head.bias}
    return said | {"classifier_dropout": head.dropout, "classifier_pooling": "mean" if head.over == "mean" else "cls"}


def transform(config: Config) -> spec.Transform:
    """What stands before every head."""
    return spec.Transform(
        activation=config.activation("classifier_activation", "gelu"),
        norm=norm_of(config),
        bias=config.get("classifier_bias", False),
    )


def masked_language(config: Config) -> Heads:
    """The masked-language head."""
    tied, bias = config.get("tie_word_embeddings", True), config.get("decoder_bias", True)
    return (spec.Language(tied=tied, bias=bias, transform=transform(config)),)


def classes(config: Config, name: str, count: int, tokens: bool = False) -> Heads:
    """Labels of each token, or of a row, read off its first token or its mean."""
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in POOLING:
        raise ConfigError(f"`classifier_pooling` is 'cls' or 'mean': got {pooling!r} ({config.where}).")
    return (
        spec.Classes(
            count=count,
            over="tokens" if tokens else "mean" if pooling == "mean" else "first",
            transform=transform(config),
            dropout=config.get("classifier_dropout", 0.0),
            name=name,
        ),
    )


L = "model.layers.{i}."
NAMES = (
    Name("model.embeddings.tok_embeddings", "embed.tokens"),
    Name("model.embeddings.norm", "embed.norm"),
    Name("model.final_norm", "stack.final_norm"),
    Name(f"{L}attn.Wqkv", f"{BLOCK}.0.layer.q", part=(0, 3)),
    Name(f"{L}attn.Wqkv", f"{BLOCK}.0.layer.k", part=(1, 3)),
    Name(f"{L}attn.Wqkv", f"{BLOCK}.0.layer.v", part=(2, 3)),
    Name(f"{L}attn.Wo", f"{BLOCK}.0.layer.out"),
    Name(f"{L}attn_norm", f"{BLOCK}.0.norm"),
    Name(f"{L}mlp.Wi", f"{BLOCK}.1.layer.gate", part=(0, 2)),
    Name(f"{L}mlp.Wi", f"{BLOCK}.1.layer.up", part=(1, 2)),
    Name(f"{L}mlp.Wo", f"{BLOCK}.1.layer.down"),
    Name(f"{L}mlp_norm", f"{BLOCK}.1.norm"),
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
