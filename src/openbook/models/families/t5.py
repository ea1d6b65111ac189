"""T5, Flan-T5 and T5 1.1 (Raffel et al. 2020): encoder and decoder with one relative bias each, RMSNorm before."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Family, Heads, layers_of
from openbook.models.names import Name
from openbook.nn import spec


def read_mlp(config: Config, dropout: float) -> spec.MLP:
    """`feed_forward_proj`: an activation, or `gated-` and an activation."""
    said = config.get("feed_forward_proj", "relu")
    gated = said.startswith("gated-")
    name = "gelu_new" if said == "gated-gelu" else said.removeprefix("gated-")
    activation = config.activation_named(name, "feed_forward_proj")
    return spec.MLP(hidden=config.size("d_ff"), activation=activation, gated=gated, dropout=dropout)


def to_spec(config: Config) -> spec.Model:
    dim, heads, size = config.size("d_model"), config.size("num_heads"), config.size("d_kv", 64)
    layers = config.layers("num_layers")
    drop = config.get("dropout_rate", 0.1)
    for inert in ("dense_act_fn", "is_gated_act", "classifier_dropout", "n_positions", "is_decoder"):
        config.raw(inert)
    norm = spec.Norm(eps=config.get("layer_norm_epsilon", 1e-6))
    mlp = read_mlp(config, drop)
    buckets = config.size("relative_attention_num_buckets", 32)
    if buckets < 4 or buckets % 2:
        raise ConfigError(f"`relative_attention_num_buckets` must be even and at least 4: got {buckets}.")

    def stack(count: int, causal: bool) -> spec.Stack:
        attention = spec.Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=size,
            pattern=spec.Pattern(causal=causal),
            relative=True,
            scale=1.0,
            dropout=drop,
        )
        cross = spec.CrossAttention(heads=heads, kv_heads=heads, head_dim=size, scale=1.0, dropout=drop)
        parts = (attention, cross, mlp) if causal else (attention, mlp)
        block = spec.Block(branches=tuple(spec.Branch(layer=part, norm=norm, dropout=drop) for part in parts))
        relative = spec.Relative(
            heads=heads,
            buckets=buckets,
            distance=config.size("relative_attention_max_distance", 128),
            bidirectional=not causal,
        )
        return spec.Stack(dim=dim, blocks=(block,) * count, final_norm=norm, relative=relative, dropout=drop)

    return spec.Model(
        embed=spec.Embed(vocab=config.size("vocab_size"), dim=dim, dropout=drop),
        stack=stack(config.layers("num_decoder_layers", layers), causal=True),
        heads=(),
        source=spec.Encoder(stack=stack(layers, causal=False)),
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    rule = model.stack.relative
    if model.source is None or not isinstance(rule, spec.Relative) or model.stack.final_norm is None:
        raise CannotSay("it needs an encoder, relative positions and a final norm")
    name = spell_activation(mlp.activation)
    if mlp.gated and mlp.activation == "gelu_tanh":
        name = "gelu"
    return {
        "is_encoder_decoder": True,
        "vocab_size": model.embed.vocab,
        "d_model": model.stack.dim,
        "d_kv": attention.head_dim,
        "d_ff": mlp.hidden,
        "num_layers": len(model.source.stack.blocks),
        "num_decoder_layers": len(model.stack.blocks),
        "num_heads": attention.heads,
        "relative_attention_num_buckets": rule.buckets,
        "relative_attention_max_distance": rule.distance,
        "dropout_rate": model.embed.dropout,
        "layer_norm_epsilon": model.stack.final_norm.eps,
        "feed_forward_proj": f"gated-{name}" if mlp.gated else name,
        "tie_word_embeddings": model.language is None or model.language.tied,
        "scale_decoder_outputs": model.language is None or model.language.scale != 1.0,
    }


def language(config: Config) -> Heads:
    """Tied heads scale the hidden state; T5 1.1 has a head of its own and does not."""
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    tied = config.get("tie_word_embeddings", True)
    return (spec.Language(tied=tied, scale=config.size("d_model") ** -0.5 if scaled else 1.0),)


def _side(theirs: str, ours: str, last: int) -> tuple[Name, ...]:
    block, layer = f"{ours}.blocks.{{i}}.branches", f"{theirs}.block.{{i}}.layer"
    return (
        Name(f"{theirs}.final_layer_norm", f"{ours}.final_norm"),
        Name(f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias", f"{ours}.relative"),
        *(Name(f"{layer}.0.SelfAttention.{n}", f"{block}.0.layer.{n}") for n in "qkv"),
        Name(f"{layer}.0.SelfAttention.o", f"{block}.0.layer.out"),
        *(Name(f"{layer}.{n}.layer_norm", f"{block}.{n}.norm") for n in range(last + 1)),
    )


def attention_names() -> tuple[Name, ...]:
    """Everything but the feed-forward layers."""
    return (
        Name("shared", "embed.tokens"),
        Name("lm_head", "heads.language"),
        *_side("encoder", "source.stack", 1),
        *_side("decoder", "stack", 2),
        *(
            Name(f"decoder.block.{{i}}.layer.1.EncDecAttention.{n}", f"stack.blocks.{{i}}.branches.1.layer.{n}")
            for n in "qkv"
        ),
        Name("decoder.block.{i}.layer.1.EncDecAttention.o", "stack.blocks.{i}.branches.1.layer.out"),
    )


def names(model: spec.Model) -> tuple[Name, ...]:
    gated = layers_of(model.stack, spec.MLP)[0].gated
    table = [*attention_names()]
    for theirs, ours, last in (("encoder", "source.stack", 1), ("decoder", "stack", 2)):
        dense, mlp = f"{theirs}.block.{{i}}.layer.{last}.DenseReluDense", f"{ours}.blocks.{{i}}.branches.{last}.layer"
        table.append(Name(f"{dense}.wi_1" if gated else f"{dense}.wi", f"{mlp}.up"))
        table.append(Name(f"{dense}.wi_0", f"{mlp}.gate"))
        table.append(Name(f"{dense}.wo", f"{mlp}.down"))
    return tuple(table)


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
