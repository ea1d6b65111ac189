"""Falcon (Almazrouei et al. 2023): few key/value heads, branches side by side; rotary positions or ALiBi.

Where scores have ALiBi, Falcon scales it as it scales them. The reference rounds the biases to bf16, in whatever
precision it computes; here they are not rounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config, read_rope, write_rope
from openbook.models.family import SIZES, Family, branches_of
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec
from openbook.nn.build import check_heads

KEYS = {**SIZES, "hidden": "ffn_hidden_size", "kv_heads": "num_kv_heads"}
TABLE: fields.Table = {
    spec.Attention: {
        "relative": ("alibi", False),
        "dropout": ("attention_dropout", 0.0),
        **fields.biases("bias", False),
    },
    spec.MLP: {"activation": ("activation", "gelu"), "bias": ("bias", False)},
    spec.Norm: {"eps": ("layer_norm_epsilon", 1e-5)},
}


def read_layout(config: Config, heads: int) -> tuple[int, classic.Way]:
    """How many key/value heads there are, and how the branches stand."""
    grouped = config.size("num_kv_heads", heads)
    many, beside = config.get("multi_query", True), config.get("parallel_attn", True)
    norms = config.get("num_ln_in_parallel_attn", None, int)
    if not config.get("new_decoder_architecture", False):
        if beside and norms not in (None, 1):
            raise ConfigError(f"`num_ln_in_parallel_attn` = {norms} needs `new_decoder_architecture` ({config.where}).")
        return 1 if many else heads, "shared" if beside else "pre"
    if not beside or norms not in (None, 1, 2):
        raise ConfigError(
            "`new_decoder_architecture` goes with `parallel_attn` and 1 or 2 for `num_ln_in_parallel_attn`: "
            f"got {beside} and {norms} ({config.where})."
        )
    check_heads(heads, grouped, config.where)
    return grouped, "shared" if norms == 1 else "each"


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, KEYS | ({"dim": "n_embed"} if config.has("n_embed") else {}), context=2048)
    config.fixed("apply_residual_connection_post_layernorm", False, False)
    config.inert("classifier_dropout")
    (kv_heads, way), said = read_layout(config, size.heads), fields.read(config, TABLE)
    attention = replace(size.attention, kv_heads=kv_heads, **said[spec.Attention])
    alibi = spec.Alibi(heads=size.heads, scale=size.head_dim**-0.5) if attention.relative else None
    rope = read_rope(config, size.head_dim, size.context or 2048)
    attention = replace(attention, rope=None if alibi else rope)
    mlp, norm = size.mlp(**said[spec.MLP]), spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    drop = config.get("hidden_dropout", 0.0)
    block = classic.block(attention, mlp, norm, way, drop, attention.dropout if way == "pre" else drop)
    return size.model(block, norm, relative=alibi)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = fields.first(model, spec.Attention)
    way, kv_heads = classic.way_of(model), attention.kv_heads
    new = way == "each" or (way == "shared" and kv_heads not in (1, attention.heads))
    own = {
        "new_decoder_architecture": new,
        "num_kv_heads": kv_heads if new else attention.heads,
        "multi_query": kv_heads == 1,
        "parallel_attn": way != "pre",
        "num_ln_in_parallel_attn": (2 if way == "each" else 1) if new else None,
        "hidden_dropout": branches_of(model.stack)[-1].dropout,
    }
    turned = {} if attention.rope is None else {"rope_parameters": write_rope(attention.rope, attention.head_dim)}
    return classic.write_sizes(model, KEYS) | fields.write(model, TABLE) | own | turned


L = "transformer.h.{i}."
NORMS: dict[classic.Way, tuple[Name, ...]] = {
    "shared": block_names(L, norm="input_layernorm"),
    "each": block_names(L, norm1="ln_attn", norm2="ln_mlp"),
    "pre": block_names(L, norm1="input_layernorm", norm2="post_attention_layernorm"),
}


def names(model: spec.Model) -> tuple[Name, ...]:
    attention = fields.first(model, spec.Attention)
    group = attention.heads // attention.kv_heads
    return (
        Name("transformer.word_embeddings", "embed.tokens"),
        Name("transformer.ln_f", "stack.final_norm"),
        *NORMS[classic.way_of(model)],
        *fused(f"{L}self_attention.query_key_value", classic.QKV, (group, 1, 1), attention.kv_heads),
        *block_names(L, out="self_attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
        *classic.head_names(model),
    )


FAMILY = Family(
    model_type="falcon",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=classic.heads_of("Falcon"),
    prefix="transformer.",
    ignore=(r".*rotary_emb\.inv_freq",),
    sizes=KEYS,
)
