"""What the decoders with rotary positions share: how their config.json is read and written, and how tensors are named.

A family's own file says what is special about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from openbook.errors import ConfigError
from openbook.models.config import Config, read_rope, spell_activation, write_rope
from openbook.models.family import CannotSay, branches_of, layers_of
from openbook.models.names import Name
from openbook.nn import spec
from openbook.nn.build import check_heads


class Shape(NamedTuple):
    """The sizes every such decoder has."""

    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int

    @property
    def attention(self) -> spec.Attention:
        """Causal attention without positions or biases."""
        return spec.Attention(heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)


def read_shape(config: Config, context: int, kv_heads: int | None = None, head_dim: int | None = None) -> Shape:
    """Read the sizes; the arguments are the family's defaults where a config.json may be silent."""
    dim, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if head_dim is None and not config.has("head_dim") and dim % heads:
        raise ConfigError(
            f"`num_attention_heads` must divide `hidden_size`: got {heads} and {dim} ({config.where}). "
            "Change one, or set `head_dim`."
        )
    if "num_key_value_heads" in config.data:
        kv_heads = None  # null means one for each head, whatever silence means
    shape = Shape(
        vocab=config.size("vocab_size"),
        dim=dim,
        layers=config.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads", kv_heads or heads),
        head_dim=config.size("head_dim", head_dim or max(dim // heads, 1)),
        hidden=config.size("intermediate_size"),
        context=config.size("max_position_embeddings", context),
    )
    check_heads(shape.heads, shape.kv_heads, config.where)
    return shape


def attention_of(config: Config, shape: Shape, window: int | None, **special: Any) -> spec.Attention:
    """One layer's attention with rotary positions; `special` is what the family adds."""
    rope, dropout = read_rope(config, shape.head_dim, shape.context), config.get("attention_dropout", 0.0)
    return replace(shape.attention, pattern=spec.Pattern(window=window), rope=rope, dropout=dropout, **special)


def decoder(
    shape: Shape,
    norm: spec.Norm,
    attention: Callable[[int], spec.Layer],
    ffn: spec.MLP | spec.MoE | Callable[[int], spec.MLP | spec.MoE],
    place: spec.Place = "pre",
    embed: spec.Embed | None = None,
    **step: float,
) -> spec.Model:
    """A decoder without heads: attention, then a feed-forward layer, in every block; beside it where they are plain.

    `embed` is what the embedding is, where it is more than a table; `step` the scale and dropout of every branch.
    """
    own = None if place == "plain" else norm
    blocks = tuple(
        spec.Block(
            branches=tuple(
                spec.Branch(layer=layer, norm=own, place=place, **step)
                for layer in (attention(number), ffn(number) if callable(ffn) else ffn)
            ),
            parallel=place == "plain",
            norm=norm if place == "plain" else None,
        )
        for number in range(shape.layers)
    )
    return spec.Model(
        embed=embed or spec.Embed(vocab=shape.vocab, dim=shape.dim),
        stack=spec.Stack(dim=shape.dim, blocks=blocks, final_norm=norm),
        heads=(),
        context=shape.context,
    )


def windows(
    config: Config,
    layers: int,
    default: Callable[[int], bool],
    window: int | None,
    local: str = "sliding_attention",
) -> list[int | None]:
    """The window of each layer: as `layer_types` says, else where `default(number)` is true.

    `local` is what the layers that have one are called.
    """
    kinds = config.raw("layer_types")
    if kinds is None:
        kinds = [local if default(number) else "full_attention" for number in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConfigError(f"`layer_types` must list {layers} layers, as `num_hidden_layers` says ({config.where}).")
    for kind in kinds:
        if kind not in ("full_attention", local):
            raise ConfigError(
                f"Unknown layer type {kind!r} in `layer_types` of {config.where}: "
                f"'full_attention' and {local!r} are known."
            )
    if window is None and local in kinds:
        key = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}[local]
        name = local.replace("_", " ")
        raise ConfigError(f"`layer_types` names {name} but `{key}` is not set ({config.where}).")
    return [window if kind == local else None for kind in kinds]


def write_decoder(model: spec.Model, hidden_act: str = "hidden_act", eps: str = "rms_norm_eps") -> dict[str, Any]:
    """The keys of config.json that these families share. What a family cannot say shows when it is read back."""
    attentions = layers_of(model.stack, spec.Attention)
    attention: spec.Attention = next((layer for layer in attentions if layer.rope is not None), attentions[0])
    ffn = branches_of(model.stack)[-1].layer
    mlp = ffn.expert if isinstance(ffn, spec.MoE) else ffn
    if not isinstance(mlp, spec.MLP) or model.stack.final_norm is None:
        raise CannotSay("it needs a feed-forward layer and a final norm")
    rope = {} if attention.rope is None else {"rope_parameters": write_rope(attention.rope, attention.head_dim)}
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": len(model.stack.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": model.context,
        eps: model.stack.final_norm.eps,
        hidden_act: spell_activation(mlp.activation),
        "attention_dropout": attention.dropout,
        **rope,
        "tie_word_embeddings": model.language is None or model.language.tied,
    } | write_labels(model)


def write_labels(model: spec.Model) -> dict[str, Any]:
    """`num_labels`, where there is a class head whose labels one may choose."""
    own = ("next", "choice", "replaced")
    counts = [head.count for head in model.heads if isinstance(head, spec.Classes) and head.name not in own]
    return {"num_labels": counts[0]} if counts else {}


def write_windows(model: spec.Model) -> dict[str, Any]:
    """`layer_types` and `sliding_window`."""
    found = [layer.pattern.window for layer in layers_of(model.stack, spec.Attention)]
    return {
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in found],
        "sliding_window": next((window for window in found if window is not None), None),
    }


BLOCK = "stack.blocks.{i}.branches"
# Our words for what a block of attention and a feed-forward layer holds → where it is.
PLACES = {
    "norm": "stack.blocks.{i}.norm",
    "norm1": f"{BLOCK}.0.norm",
    "norm2": f"{BLOCK}.1.norm",
    **{part: f"{BLOCK}.0.layer.{part}" for part in ("q", "k", "v", "out", "q_norm", "k_norm")},
    **{part: f"{BLOCK}.1.layer.{part}" for part in ("gate", "up", "down")},
}


def block_names(theirs: str, transpose: bool = False, **parts: str) -> tuple[Name, ...]:
    """What each block holds, published under `theirs`: `up="fc1"` for the first map of the feed-forward layer."""
    return tuple(Name(theirs + name, PLACES[part], transpose) for part, name in parts.items())


BASE = (
    Name("model.embed_tokens", "embed.tokens"),
    Name("model.norm", "stack.final_norm"),
    Name("lm_head", "heads.language"),
    Name("score", "heads.classes.linear"),
    *(Name(f"model.layers.{{i}}.self_attn.{n}_proj", f"{BLOCK}.0.layer.{n}") for n in "qkv"),
    *block_names("model.layers.{i}.self_attn.", out="o_proj", q_norm="q_norm", k_norm="k_norm"),
)
GATED = block_names("model.layers.{i}.mlp.", gate="gate_proj", up="up_proj", down="down_proj")
PRE_NORMS = block_names("model.layers.{i}.", norm1="input_layernorm", norm2="post_attention_layernorm")
BOTH_NORMS = (
    Name("model.layers.{i}.input_layernorm", f"{BLOCK}.0.norm"),
    Name("model.layers.{i}.post_attention_layernorm", f"{BLOCK}.0.post_norm"),
    Name("model.layers.{i}.pre_feedforward_layernorm", f"{BLOCK}.1.norm"),
    Name("model.layers.{i}.post_feedforward_layernorm", f"{BLOCK}.1.post_norm"),
)
# Tables of angles that old checkpoints carry.
IGNORE = (r".*rotary_emb\.inv_freq",)
