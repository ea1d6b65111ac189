"""StableLM (Bellagente et al. 2024): a quarter of each head turned, LayerNorm, SwiGLU; side by side or in turn."""

from __future__ import annotations

from typing import Any

from openbook.models.classic import Way, block, heads_of, layer_norm, norm_of, read_sizes, way_of, write_sizes
from openbook.models.config import Config, read_rope, share_of, spell_activation, write_rope
from openbook.models.family import SIZES, CannotSay, Family, branches_of, language, layers_of
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, GATED, IGNORE, PRE_NORMS
from openbook.nn import spec
from openbook.nn.build import check_heads


def to_spec(config: Config) -> spec.Model:
    size = read_sizes(config, SIZES, context=4096)
    each = spec.QueryKeyNorm(norm=layer_norm(config, "layer_norm_eps", bias=False), over="heads")
    config.raw("classifier_dropout")
    kv_heads = config.size("num_key_value_heads", size.heads)
    check_heads(size.heads, kv_heads, config.where)
    share = config.get("rope_pct", 0.25)  # as it was first published
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=kv_heads,
        head_dim=size.head_dim,
        rope=read_rope(config, size.head_dim, size.context or 4096, share=share),
        bias=config.get("use_qkv_bias", False),
        norm=each if config.get("qk_layernorm", False) else None,
        dropout=config.get("attention_dropout", 0.0),
    )
    mlp = spec.MLP(hidden=size.hidden, activation=config.activation("hidden_act", "silu"))
    norm = layer_norm(config, "layer_norm_eps")
    way: Way = "shared" if config.get("use_parallel_residual", False) else "pre"
    one = block(attention, mlp, norm, way, config.get("hidden_dropout", 0.0), attention_dropout=0.0)
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim),
        stack=spec.Stack(dim=size.dim, blocks=(one,) * size.layers, final_norm=norm),
        heads=(),
        context=size.context,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    if attention.rope is None:
        raise CannotSay("it needs rotary positions")
    rope = write_rope(attention.rope, attention.head_dim)
    return write_sizes(model, SIZES) | {
        "num_key_value_heads": attention.kv_heads,
        "rope_parameters": rope | {"partial_rotary_factor": share_of(attention.rope, attention.head_dim)},
        "use_qkv_bias": attention.bias,
        "qk_layernorm": attention.norm is not None,
        "use_parallel_residual": way_of(model) == "shared",
        "hidden_act": spell_activation(mlp.activation),
        "layer_norm_eps": norm_of(model).eps,
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
    names=lambda model: HEAD_NORMS + BASE + GATED + (ONE_NORM if way_of(model) == "shared" else PRE_NORMS),
    heads=heads_of("StableLm", language, spans=False),
    prefix="model.",
    ignore=IGNORE,
)
