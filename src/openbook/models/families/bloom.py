"""BLOOM (BigScience 2022): ALiBi, a norm after the embedding, q, k and v of each head one after the other."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.classic import QKV, block, head_names, heads_of, layer_norm, norm_of, read_sizes, write_sizes
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, branches_of, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = {
    "vocab": "vocab_size",
    "dim": "hidden_size",
    "layers": "n_layer",
    "heads": "n_head",
    "tied": "tie_word_embeddings",
}
OLD = {"dim": "n_embed", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
# `slow_but_exact` and `pretraining_tp` say in which order sums were rounded; `seq_length` what training rows held.
INERT = (
    *("slow_but_exact", "seq_length", "masked_softmax_fusion", "bias_dropout_fusion", "skip_bias_add"),
    *("skip_bias_add_qkv", "attention_softmax_in_fp32", "offset_alibi", "n_inner", "classifier_dropout"),
)


def to_spec(config: Config) -> spec.Model:
    keys = KEYS | {word: key for word, key in OLD.items() if config.has(key)}
    size = read_sizes(config, keys)
    config.fixed("apply_residual_connection_post_layernorm", False, False)
    if config.get("n_inner", 4 * size.dim) != 4 * size.dim:
        raise ConfigError(f"`n_inner` must be four times `hidden_size`, as all BLOOM's are ({config.where}).")
    for inert in INERT:
        config.raw(inert)
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.head_dim,
        relative=True,
        bias=True,
        out_bias=True,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = spec.MLP(hidden=size.hidden, activation="gelu_tanh", gated=False, bias=True)
    norm = layer_norm(config)
    one = block(attention, mlp, norm, dropout=config.get("hidden_dropout", 0.0))
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, norm=norm),
        stack=spec.Stack(
            dim=size.dim, blocks=(one,) * size.layers, final_norm=norm, relative=spec.Alibi(heads=size.heads)
        ),
        heads=(),
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    if model.stack.relative is None or model.embed.norm is None:
        raise CannotSay("it needs ALiBi and a norm after the embedding")
    return write_sizes(model, KEYS) | {
        "layer_norm_epsilon": norm_of(model).eps,
        "hidden_dropout": branches_of(model.stack)[0].dropout,
        "attention_dropout": layers_of(model.stack, spec.Attention)[0].dropout,
    }


L = "transformer.h.{i}."


def names(model: spec.Model) -> tuple[Name, ...]:
    heads = layers_of(model.stack, spec.Attention)[0].heads
    return (
        Name("transformer.word_embeddings", "embed.tokens"),
        Name("transformer.word_embeddings_layernorm", "embed.norm"),
        Name("transformer.ln_f", "stack.final_norm"),
        Name(f"{L}input_layernorm", f"{BLOCK}.0.norm"),
        Name(f"{L}post_attention_layernorm", f"{BLOCK}.1.norm"),
        *fused(f"{L}self_attention.query_key_value", QKV, (1, 1, 1), heads),
        Name(f"{L}self_attention.dense", f"{BLOCK}.0.layer.out"),
        Name(f"{L}mlp.dense_h_to_4h", f"{BLOCK}.1.layer.up"),
        Name(f"{L}mlp.dense_4h_to_h", f"{BLOCK}.1.layer.down"),
        *head_names(model),
    )


FAMILY = Family(
    model_type="bloom",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=heads_of("Bloom"),
    prefix="transformer.",
    sizes=KEYS,
)
