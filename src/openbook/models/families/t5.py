"""T5, Flan-T5 and T5 1.1 (Raffel et al. 2020): encoder and decoder with one relative bias each, RMSNorm before."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models import fields
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Family, Heads
from openbook.models.names import Name
from openbook.nn import spec

HEADS: fields.Fields = {"heads": "num_heads", "kv_heads": "num_heads", "head_dim": ("d_kv", 64)}
TABLE: fields.Table = {
    spec.Attention: {**HEADS, "dropout": ("dropout_rate", 0.1)},
    spec.Relative: {
        "buckets": ("relative_attention_num_buckets", 32),
        "distance": ("relative_attention_max_distance", 128),
    },
    spec.MLP: {"hidden": "d_ff", "dropout": ("dropout_rate", 0.1)},
    spec.Norm: {"eps": ("layer_norm_epsilon", 1e-6)},
    spec.Embed: {"vocab": "vocab_size", "dim": "d_model", "dropout": ("dropout_rate", 0.1)},
}


def read_mlp(config: Config) -> spec.MLP:
    """`feed_forward_proj`: an activation, or `gated-` and an activation."""
    said = config.get("feed_forward_proj", "relu")
    name = "gelu_new" if said == "gated-gelu" else said.removeprefix("gated-")
    activation = config.activation_named(name, "feed_forward_proj")
    return spec.MLP(activation=activation, gated=said.startswith("gated-"), **fields.take(config, TABLE[spec.MLP]))


def to_spec(config: Config) -> spec.Model:
    said, mlp, layers = fields.read(config, TABLE), read_mlp(config), config.layers("num_layers")
    config.inert("dense_act_fn", "is_gated_act", "classifier_dropout", "n_positions", "is_decoder")
    norm, embed, shape = spec.Norm(**said[spec.Norm]), spec.Embed(**said[spec.Embed]), said[spec.Attention]
    buckets = said[spec.Relative]["buckets"]
    if buckets < 4 or buckets % 2:
        raise ConfigError(f"`relative_attention_num_buckets` must be even and at least 4: got {buckets}.")

    def stack(count: int, causal: bool) -> spec.Stack:
        attention = spec.Attention(pattern=spec.Pattern(causal=causal), relative=True, scale=1.0, **shape)
        cross = spec.CrossAttention(scale=1.0, **shape)
        parts = (attention, cross, mlp) if causal else (attention, mlp)
        drop = embed.dropout
        block = spec.Block(branches=tuple(spec.Branch(layer=part, norm=norm, dropout=drop) for part in parts))
        relative = spec.Relative(heads=shape["heads"], bidirectional=not causal, **said[spec.Relative])
        return spec.Stack(dim=embed.dim, blocks=(block,) * count, final_norm=norm, relative=relative, dropout=drop)

    decoder = stack(config.layers("num_decoder_layers", layers), causal=True)
    return spec.Model(embed=embed, stack=decoder, heads=(), source=spec.Encoder(stack=stack(layers, causal=False)))


def from_spec(model: spec.Model) -> dict[str, Any]:
    mlp, head = fields.first(model, spec.MLP), model.language
    if model.source is None:
        raise CannotSay("it needs an encoder")
    name = "gelu" if mlp.gated and mlp.activation == "gelu_tanh" else spell_activation(mlp.activation)
    return fields.write(model, TABLE) | {
        "is_encoder_decoder": True,
        "num_layers": len(model.source.stack.blocks),
        "num_decoder_layers": len(model.stack.blocks),
        "feed_forward_proj": f"gated-{name}" if mlp.gated else name,
        "tie_word_embeddings": head is None or head.tied,
        "scale_decoder_outputs": head is None or head.scale != 1.0,
    }


def language(config: Config) -> Heads:
    """Tied heads scale the hidden state; T5 1.1 has a head of its own and does not."""
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    tied = config.get("tie_word_embeddings", True)
    return (spec.Language(tied=tied, scale=config.size("d_model") ** -0.5 if scaled else 1.0),)


SIDES = (("encoder", "source.stack", 1), ("decoder", "stack", 2))  # theirs, ours, which branch is feed-forward


def _attention(theirs: str, ours: str) -> tuple[Name, ...]:
    return tuple(Name(f"{theirs}.{n}", f"{ours}.layer.{'out' if n == 'o' else n}") for n in "qkvo")


def _side(theirs: str, ours: str, last: int) -> tuple[Name, ...]:
    layer, block = f"{theirs}.block.{{i}}.layer", f"{ours}.blocks.{{i}}.branches"
    return (
        Name(f"{theirs}.final_layer_norm", f"{ours}.final_norm"),
        Name(f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias", f"{ours}.relative"),
        *_attention(f"{layer}.0.SelfAttention", f"{block}.0"),
        *(_attention(f"{layer}.1.EncDecAttention", f"{block}.1") if last == 2 else ()),
        *(Name(f"{layer}.{n}.layer_norm", f"{block}.{n}.norm") for n in range(last + 1)),
    )


# Everything but the feed-forward layers.
OUTER = (Name("shared", "embed.tokens"), Name("lm_head", "heads.language"), *(n for s in SIDES for n in _side(*s)))


def names(model: spec.Model) -> tuple[Name, ...]:
    up = "wi_1" if fields.first(model, spec.MLP).gated else "wi"
    inner = tuple(
        Name(f"{theirs}.block.{{i}}.layer.{last}.DenseReluDense.{a}", f"{ours}.blocks.{{i}}.branches.{last}.layer.{b}")
        for theirs, ours, last in SIDES
        for a, b in ((up, "up"), ("wi_0", "gate"), ("wo", "down"))
    )
    return OUTER + inner


FAMILY = Family(
    model_type="t5",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={"T5ForConditionalGeneration": language, "T5Model": lambda _: (), "T5WithLMHeadModel": language},
    ignore=(r"(encoder|decoder)\.embed_tokens\.weight", r".*EncDecAttention\.relative_attention_bias\.weight"),
    sizes={
        "vocab": "vocab_size",
        "dim": "d_model",
        "layers": "num_layers",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "hidden": "d_ff",
        "tied": "tie_word_embeddings",
    },
)
