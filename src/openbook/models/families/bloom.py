"""BLOOM (BigScience 2022): ALiBi, a norm after the embedding, q, k and v of each head one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic
from openbook.models.config import Config
from openbook.models.family import Family, branches_of, layers_of
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
    size = classic.read_sizes(config, keys)
    config.fixed("apply_residual_connection_post_layernorm", False, False)
    if config.get("n_inner", 4 * size.dim) != 4 * size.dim:
        raise ConfigError(f"`n_inner` must be four times `hidden_size`, as all BLOOM's are ({config.where}).")
    for inert in INERT:
        config.raw(inert)
    rates = config.get("attention_dropout", 0.0), config.get("hidden_dropout", 0.0)
    attention = replace(size.attention, relative=True, bias=True, out_bias=True, dropout=rates[0])
    norm = classic.layer_norm(config)
    block = classic.block(attention, size.mlp("gelu_tanh"), norm, dropout=rates[1])
    return size.model(block, norm, replace(size.embed(), norm=norm), spec.Alibi(heads=size.heads))


def from_spec(model: spec.Model) -> dict[str, Any]:
    return classic.write_sizes(model, KEYS) | {
        "layer_norm_epsilon": classic.norm_of(model).eps,
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
        *fused(f"{L}self_attention.query_key_value", classic.QKV, (1, 1, 1), heads),
        Name(f"{L}self_attention.dense", f"{BLOCK}.0.layer.out"),
        Name(f"{L}mlp.dense_h_to_4h", f"{BLOCK}.1.layer.up"),
        Name(f"{L}mlp.dense_4h_to_h", f"{BLOCK}.1.layer.down"),
        *classic.head_names(model),
    )


FAMILY = Family(
    model_type="bloom",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=classic.heads_of("Bloom"),
    prefix="transformer.",
    sizes=KEYS,
)
