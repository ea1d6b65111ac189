"""StarCoder 2 (Lozhkov et al. 2024): rotary positions with LayerNorm, biases and a plain feed-forward layer."""

from __future__ import annotations

from typing import Any

from openbook.models.classic import layer_norm
from openbook.models.config import Config
from openbook.models.family import Family, branches_of, layers_of
from openbook.models.modern import attention, decoder_heads, mlp, write
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, decoder, read_shape, write_windows
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=4096, kv_heads=2)
    bias = config.get("use_bias", True)
    layer = attention(config, shape, config.get("sliding_window", None, int), bias=bias, out_bias=bias)
    ffn = mlp(config, shape, "gelu_pytorch_tanh", gated=False, bias=bias)
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, dropout=config.get("embedding_dropout", 0.0))
    norm, drop = layer_norm(config, "norm_epsilon"), config.get("residual_dropout", 0.0)
    return decoder(shape, norm, lambda _: layer, ffn, embed=embed, dropout=drop)


def from_spec(model: spec.Model) -> dict[str, Any]:
    return write(model, "norm_epsilon") | {
        "sliding_window": write_windows(model)["sliding_window"],
        "use_bias": layers_of(model.stack, spec.Attention)[0].bias,
        "embedding_dropout": model.embed.dropout,
        "residual_dropout": branches_of(model.stack)[0].dropout,
    }


PLAIN = (
    Name("model.layers.{i}.mlp.c_fc", f"{BLOCK}.1.layer.up"),
    Name("model.layers.{i}.mlp.c_proj", f"{BLOCK}.1.layer.down"),
)
FAMILY = Family(
    model_type="starcoder2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + PLAIN,
    heads=decoder_heads("Starcoder2", tied=True),
    prefix="model.",
    ignore=IGNORE,
)
