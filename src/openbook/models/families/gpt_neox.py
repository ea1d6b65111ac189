"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): branches side by side, a part of each head turned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic, fields
from openbook.models.config import Config, read_rope
from openbook.models.family import SIZES, Family, language
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec

TABLE: fields.Table = {
    spec.Attention: {**fields.biases("attention_bias", True), "dropout": ("attention_dropout", 0.0)},
    spec.MLP: {"activation": ("hidden_act", "gelu")},
    spec.Norm: {"eps": ("layer_norm_eps", 1e-5)},
    spec.Branch: {"dropout": ("hidden_dropout", 0.0)},
    spec.Embed: {"dropout": ("hidden_dropout", 0.0)},
}


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, SIZES, context=2048), fields.read(config, TABLE)
    config.fixed("is_decoder", False, False)
    config.inert("classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob")
    base, share = config.get("rotary_emb_base", 1e4), config.get("rotary_pct", 0.25)  # the old spelling
    rope = read_rope(config, size.head_dim, size.context or 2048, theta=base, share=share)
    attention = replace(size.attention, rope=rope, **said[spec.Attention])
    way: classic.Way = "each" if config.get("use_parallel_residual", True) else "pre"
    return classic.plain(size, attention, said, way)


def from_spec(model: spec.Model) -> dict[str, Any]:
    own = {"use_parallel_residual": classic.way_of(model) == "each"}
    return classic.write_sizes(model, SIZES) | classic.write_turned(model) | fields.write(model, TABLE) | own


L = "gpt_neox.layers.{i}."


def names(model: spec.Model) -> tuple[Name, ...]:
    heads = fields.first(model, spec.Attention).heads
    return (
        Name("gpt_neox.embed_in", "embed.tokens"),
        Name("gpt_neox.final_layer_norm", "stack.final_norm"),
        *fused(f"{L}attention.query_key_value", classic.QKV, (1, 1, 1), heads),
        *block_names(L, norm1="input_layernorm", norm2="post_attention_layernorm", out="attention.dense"),
        *block_names(f"{L}mlp.", up="dense_h_to_4h", down="dense_4h_to_h"),
        *classic.head_names(model, "embed_out"),
    )


FAMILY = Family(
    model_type="gpt_neox",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=classic.heads_of("GPTNeoX", language),
    prefix="gpt_neox.",
    ignore=(r".*attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
)
