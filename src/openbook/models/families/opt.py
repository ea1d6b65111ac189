"""OPT (Zhang et al. 2022): learned positions from row 2 on, ReLU; in one size norms after, and narrow token vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic
from openbook.models.config import Config, spell_activation
from openbook.models.family import SIZES, Family, branches_of, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = {**SIZES, "hidden": "ffn_dim"}
OFFSET = 2  # rows before the first position, once meant for padding


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, KEYS, context=2048)
    config.fixed("layerdrop", 0.0, 0.0)
    config.fixed("layer_norm_elementwise_affine", True, True)
    for inert in ("init_std", "activation_dropout", "classifier_dropout"):
        config.raw(inert)
    bias, drop = config.get("enable_bias", True), config.get("dropout", 0.1)
    before = config.get("do_layer_norm_before", True)
    last = before and not config.get("_remove_final_layer_norm", False)
    inner = config.size("word_embed_proj_dim", size.dim)
    attention = replace(size.attention, bias=bias, out_bias=bias, dropout=config.get("attention_dropout", 0.0))
    mlp = size.mlp(config.activation("activation_function", "relu"), bias)
    norm = spec.Norm(kind="layer", eps=1e-5, bias=True)
    block = classic.block(attention, mlp, norm, "pre" if before else "post", drop)
    narrow = None if inner == size.dim else inner
    positions = spec.Learned(count=(size.context or 2048) + OFFSET, offset=OFFSET)
    made = size.model(block, norm if last else None, replace(size.embed(), positions=positions, inner=narrow))
    return replace(made, stack=replace(made.stack, out=narrow))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    before = classic.way_of(model) == "pre"
    return classic.write_sizes(model, KEYS) | {
        "word_embed_proj_dim": model.stack.width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and model.stack.final_norm is None,
        "enable_bias": attention.bias,
        "activation_function": spell_activation(mlp.activation),
        "dropout": branches_of(model.stack)[0].dropout,
        "attention_dropout": attention.dropout,
    }


L = "model.decoder.layers.{i}."
BODY = (
    Name("model.decoder.embed_tokens", "embed.tokens"),
    Name("model.decoder.project_in", "embed.widen"),
    Name("model.decoder.embed_positions", "embed.positions"),
    Name("model.decoder.final_layer_norm", "stack.final_norm"),
    Name("model.decoder.project_out", "stack.out"),
    *(Name(f"{L}self_attn.{n}_proj", f"{BLOCK}.0.layer.{n}") for n in ("q", "k", "v", "out")),
    Name(f"{L}self_attn_layer_norm", f"{BLOCK}.0.norm"),
    Name(f"{L}fc1", f"{BLOCK}.1.layer.up"),
    Name(f"{L}fc2", f"{BLOCK}.1.layer.down"),
    Name(f"{L}final_layer_norm", f"{BLOCK}.1.norm"),
)
FAMILY = Family(
    model_type="opt",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: BODY + classic.head_names(model),
    heads=classic.heads_of("OPT", tokens=False),
    prefix="model.",
    ignore=(r".*decoder\.version",),
    sizes=KEYS,
)
