"""What the translators share (BART, mBART, Marian, Pegasus): how their config.json is read and written, and names.

Two stacks of one width, cross attention, biases everywhere, one table of tokens; what differs is where the norms stand
and which positions there are, and that a family's own file says.
"""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Heads, layers_of
from openbook.models.names import Name
from openbook.models.parts import write_labels
from openbook.nn import spec

NORM = spec.Norm(kind="layer", eps=1e-5, bias=True)  # the only one there is in these families
# What training, beam search and other tools read.
INERT = [
    "encoder_layerdrop",
    "decoder_layerdrop",
    "init_std",
    "forced_eos_token_id",
    "forced_bos_token_id",
    "is_decoder",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "classifier_dropout",
    "classif_dropout",
    "static_position_embeddings",
    "extra_pos_embeddings",
    "do_blenderbot_90_layernorm",
    "num_beams",
    "max_length",
    "bad_words_ids",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
    "min_length",
]


def read_pair(
    config: Config,
    *,
    positions: spec.Learned | spec.Sinusoidal,
    place: spec.Place,
    embed_norm: bool,
    final_norm: bool,
    default: str = "gelu",
) -> spec.Model:
    """The model of a config.json without heads; `default` is the activation where it is silent."""
    dim, drop = config.size("d_model"), config.get("dropout", 0.1)
    config.inert(*INERT)
    activation = config.activation("activation_function", default)
    scale = float(dim) ** 0.5 if config.get("scale_embedding", False) else 1.0

    def stack(side: str, causal: bool) -> spec.Stack:
        heads = config.size(f"{side}_attention_heads", 16)
        if dim % heads:
            raise ConfigError(f"`{side}_attention_heads` must divide `d_model`: got {heads} and {dim}, {config.where}.")
        shape: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_dim": dim // heads, "bias": True}
        shape |= {"out_bias": True, "dropout": config.get("attention_dropout", 0.0)}
        hidden = config.size(f"{side}_ffn_dim", 4096)
        mlp = spec.MLP(
            hidden=hidden,
            activation=activation,
            gated=False,
            bias=True,
            dropout=config.get("activation_dropout", 0.0),
        )
        attention = spec.Attention(pattern=spec.Pattern(causal=causal), **shape)
        layers = (attention, spec.CrossAttention(**shape), mlp) if causal else (attention, mlp)
        block = spec.Block(
            branches=tuple(spec.Branch(layer=one, norm=NORM, place=place, dropout=drop) for one in layers)
        )
        count = config.layers(f"{side}_layers", 12)
        return spec.Stack(dim=dim, blocks=(block,) * count, final_norm=NORM if final_norm else None)

    vocab, shared = config.size("vocab_size"), config.get("share_encoder_decoder_embeddings", True)
    norm = NORM if embed_norm else None
    rest: dict[str, Any] = {"dim": dim, "positions": positions, "norm": norm, "scale": scale, "dropout": drop}
    own = config.size("decoder_vocab_size", vocab)
    if shared and own != vocab:
        raise ConfigError(
            f"One table of tokens has one size: got {vocab} and `decoder_vocab_size` {own} ({config.where})."
        )
    return spec.Model(
        embed=spec.Embed(vocab=own, **rest),
        stack=stack("decoder", causal=True),
        heads=(),
        source=spec.Encoder(stack=stack("encoder", causal=False), embed=spec.Embed(vocab=vocab, **rest), shared=shared),
        context=config.size("max_position_embeddings", 1024),
    )


def write_pair(model: spec.Model) -> dict[str, Any]:
    """The keys of config.json that these families share."""
    if model.source is None or model.source.embed is None:
        raise CannotSay("it needs an encoder with an embedding")
    found: dict[str, Any] = {"is_encoder_decoder": True}
    for side, stack in (("encoder", model.source.stack), ("decoder", model.stack)):
        attention, mlp = layers_of(stack, spec.Attention)[0], layers_of(stack, spec.MLP)[0]
        found |= {
            f"{side}_layers": len(stack.blocks),
            f"{side}_attention_heads": attention.heads,
            f"{side}_ffn_dim": mlp.hidden,
            "attention_dropout": attention.dropout,
            "activation_dropout": mlp.dropout,
            "activation_function": spell_activation(mlp.activation),
        }
    return (
        found
        | {
            "vocab_size": model.source.embed.vocab,
            "d_model": model.stack.dim,
            "max_position_embeddings": model.context,
            "dropout": model.embed.dropout,
            "scale_embedding": model.embed.scale != 1.0,
            "tie_word_embeddings": model.language is None or model.language.tied,
        }
        | write_labels(model)
    )


def language(config: Config) -> Heads:
    """Logits moved by a stored bias; tied unless the config says otherwise."""
    return (spec.Language(tied=config.get("tie_word_embeddings", True), bias=True),)


def _attention(theirs: str, ours: str) -> tuple[Name, ...]:
    return (
        *(Name(f"{theirs}.{n}_proj", f"{ours}.{n}") for n in "qkv"),
        Name(f"{theirs}.out_proj", f"{ours}.out"),
    )


def _side(theirs: str, ours: str, embed: str, cross: bool) -> tuple[Name, ...]:
    layer, block, last = f"model.{theirs}.layers.{{i}}", f"{ours}.blocks.{{i}}.branches", 2 if cross else 1
    across = _attention(f"{layer}.encoder_attn", f"{block}.1.layer") if cross else ()
    between = (Name(f"{layer}.encoder_attn_layer_norm", f"{block}.1.norm"),) if cross else ()
    return (
        Name(f"model.{theirs}.embed_positions", f"{embed}.positions"),
        Name(f"model.{theirs}.layernorm_embedding", f"{embed}.norm"),
        Name(f"model.{theirs}.layer_norm", f"{ours}.final_norm"),
        *_attention(f"{layer}.self_attn", f"{block}.0.layer"),
        *across,
        *between,
        Name(f"{layer}.self_attn_layer_norm", f"{block}.0.norm"),
        Name(f"{layer}.fc1", f"{block}.{last}.layer.up"),
        Name(f"{layer}.fc2", f"{block}.{last}.layer.down"),
        Name(f"{layer}.final_layer_norm", f"{block}.{last}.norm"),
    )


def names(model: spec.Model) -> tuple[Name, ...]:
    """Encoder and decoder; one table of tokens, or one each."""
    shared = model.source is not None and model.source.shared
    tokens = (
        (Name("model.shared", "embed.tokens"),)
        if shared
        else (
            Name("model.decoder.embed_tokens", "embed.tokens"),
            Name("model.encoder.embed_tokens", "source.embed.tokens"),
        )
    )
    return (
        *tokens,
        Name("final_logits_bias", "heads.language.bias", insert=0),
        Name("lm_head.weight", "heads.language.weight"),
        *_side("encoder", "source.stack", "source.embed", cross=False),
        *_side("decoder", "stack", "embed", cross=True),
    )


IGNORE = (
    r"(model\.)?(encoder|decoder)\.(embed_tokens|embed_positions)\.weight",
    r"(model\.)?shared\.weight",
    r"(model\.)?(encoder|decoder)\.version",
)
SIZES = {
    "vocab": "vocab_size",
    "dim": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "hidden": "encoder_ffn_dim",
    "context": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}
