"""BLOOM (BigScience 2022): ALiBi, a norm after the embedding, q, k and v of each head one after the other."""

from __future__ import annotations

from dataclasses import replace

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec

KEYS = {word: classic.GPT[word] for word in ("vocab", "layers", "heads", "tied")} | {"dim": "hidden_size"}
TABLE: fields.Table = {
    spec.Attention: {"dropout": ("attention_dropout", 0.0)},
    spec.Norm: {"eps": ("layer_norm_epsilon", 1e-5)},
    spec.Branch: {"dropout": ("hidden_dropout", 0.0)},
}
OLD = {"dim": "n_embed", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
# `slow_but_exact` and `pretraining_tp` say in which order sums were rounded; `seq_length` what training rows held.
INERT = (
    *("slow_but_exact", "seq_length", "masked_softmax_fusion", "bias_dropout_fusion", "skip_bias_add"),
    *("skip_bias_add_qkv", "attention_softmax_in_fp32", "offset_alibi", "n_inner", "classifier_dropout"),
)


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, KEYS | {word: key for word, key in OLD.items() if config.has(key)})
    config.fixed("apply_residual_connection_post_layernorm", False, False)
    if config.get("n_inner", 4 * size.dim) != 4 * size.dim:
        raise ConfigError(f"`n_inner` must be four times `hidden_size`, as all BLOOM's are ({config.where}).")
    config.inert(*INERT)
    said = fields.read(config, TABLE)
    attention = replace(size.attention, relative=True, bias=True, out_bias=True, **said[spec.Attention])
    norm = spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    block = classic.block(attention, size.mlp("gelu_tanh"), norm, **said[spec.Branch])
    return size.model(block, norm, replace(size.embed(), norm=norm), spec.Alibi(heads=size.heads))


L = "transformer.h.{i}."


def names(model: spec.Model) -> tuple[Name, ...]:
    heads = fields.first(model, spec.Attention).heads
    return (
        Name("transformer.word_embeddings", "embed.tokens"),
        Name("transformer.word_embeddings_layernorm", "embed.norm"),
        Name("transformer.ln_f", "stack.final_norm"),
        *fused(f"{L}self_attention.query_key_value", classic.QKV, (1, 1, 1), heads),
        *block_names(L, norm1="input_layernorm", norm2="post_attention_layernorm", out="self_attention.dense"),
        *block_names(f"{L}mlp.", up="dense_h_to_4h", down="dense_4h_to_h"),
        *classic.head_names(model),
    )


FAMILY = Family(
    model_type="bloom",
    to_spec=to_spec,
    from_spec=lambda model: classic.write_sizes(model, KEYS) | fields.write(model, TABLE),
    names=names,
    heads=classic.heads_of("Bloom"),
    prefix="transformer.",
    sizes=KEYS,
)
