"""StableLM (Bellagente et al. 2024): a quarter of each head turned, LayerNorm, SwiGLU; side by side or in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic, fields
from openbook.models.config import Config, read_rope
from openbook.models.family import SIZES, Family, branches_of, language
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, GATED, IGNORE, PRE_NORMS
from openbook.nn import spec

TABLE: fields.Table = {
    spec.Attention: {"bias": ("use_qkv_bias", False), "dropout": ("attention_dropout", 0.0)},
    spec.MLP: {"activation": ("hidden_act", "silu")},
    spec.Norm: {"eps": ("layer_norm_eps", 1e-5)},
}


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, SIZES, context=4096), fields.read(config, TABLE)
    config.inert("classifier_dropout")
    share = config.get("rope_pct", 0.25)  # as it was first published
    rope = read_rope(config, size.head_dim, size.context or 4096, share=share)
    each = spec.QueryKeyNorm(norm=spec.Norm(kind="layer", **said[spec.Norm]), over="heads")
    normed = each if config.get("qk_layernorm", False) else None
    shape = replace(size.attention, kv_heads=size.kv_heads(config), rope=rope, norm=normed)
    attention, mlp = replace(shape, **said[spec.Attention]), spec.MLP(hidden=size.hidden, **said[spec.MLP])
    norm = spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    way: classic.Way = "shared" if config.get("use_parallel_residual", False) else "pre"
    drop = config.get("hidden_dropout", 0.0)
    return size.model(classic.block(attention, mlp, norm, way, drop, attention_dropout=0.0), norm)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = fields.first(model, spec.Attention)
    own = {
        "num_key_value_heads": attention.kv_heads,
        "qk_layernorm": attention.norm is not None,
        "use_parallel_residual": classic.way_of(model) == "shared",
        "hidden_dropout": branches_of(model.stack)[-1].dropout,
    }
    return classic.write_sizes(model, SIZES) | classic.write_turned(model) | fields.write(model, TABLE) | own


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
