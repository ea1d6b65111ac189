"""StableLM (Bellagente et al. 2024): a quarter of each head turned, LayerNorm, SwiGLU; side by side or in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic
from openbook.models.config import Config, read_rope, spell_activation
from openbook.models.family import SIZES, Family, branches_of, language, layers_of
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, GATED, IGNORE, PRE_NORMS
from openbook.nn import spec
from openbook.nn.build import check_heads


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, SIZES, context=4096)
    each = spec.QueryKeyNorm(norm=classic.layer_norm(config, "layer_norm_eps", bias=False), over="heads")
    config.raw("classifier_dropout")
    kv_heads = config.size("num_key_value_heads", size.heads)
    check_heads(size.heads, kv_heads, config.where)
    share = config.get("rope_pct", 0.25)  # as it was first published
    attention = replace(
        size.attention,
        kv_heads=kv_heads,
        rope=read_rope(config, size.head_dim, size.context or 4096, share=share),
        bias=config.get("use_qkv_bias", False),
        norm=each if config.get("qk_layernorm", False) else None,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = spec.MLP(hidden=size.hidden, activation=config.activation("hidden_act", "silu"))
    norm = classic.layer_norm(config, "layer_norm_eps")
    way: classic.Way = "shared" if config.get("use_parallel_residual", False) else "pre"
    drop = config.get("hidden_dropout", 0.0)
    return size.model(classic.block(attention, mlp, norm, way, drop, attention_dropout=0.0), norm)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = layers_of(model.stack, spec.Attention)[0]
    said = classic.write_sizes(model, SIZES) | classic.write_turned(model)
    return said | {
        "num_key_value_heads": attention.kv_heads,
        "use_qkv_bias": attention.bias,
        "qk_layernorm": attention.norm is not None,
        "use_parallel_residual": classic.way_of(model) == "shared",
        "hidden_act": spell_activation(layers_of(model.stack, spec.MLP)[0].activation),
        "layer_norm_eps": classic.norm_of(model).eps,
        "hidden_dropout": branches_of(model.stack)[-1].dropout,
        "attention_dropout": attention.dropout,
    }


HEAD_NORMS = tuple(  # published head by head
    Name(f"model.layers.{{i}}.self_attn.{part}_layernorm.norms.{{e}}.weight", f"{BLOCK}.0.layer.{part}_norm.weight")
    for part in "qk"
)
ONE_NORM = (Name("model.layers.{i}.input_layernorm", "stack.blocks.{i}.norm"),)
FAMILY = Family(
    model_type="stablelm",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: HEAD_NORMS + BASE + GATED + (ONE_NORM if classic.way_of(model) == "shared" else PRE_NORMS),
    heads=classic.heads_of("StableLm", language, spans=False),
    prefix="model.",
    ignore=IGNORE,
)
