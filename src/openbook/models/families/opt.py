"""OPT (Zhang et al. 2022): learned positions from row 2 on, ReLU; in one size norms after, and narrow token vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import SIZES, Family
from openbook.models.names import Name
from openbook.models.parts import block_names
from openbook.nn import spec

KEYS = {**SIZES, "hidden": "ffn_dim"}
TABLE: fields.Table = {
    spec.Attention: {**fields.biases("enable_bias", True), "dropout": ("attention_dropout", 0.0)},
    spec.MLP: {"activation": ("activation_function", "relu"), "bias": ("enable_bias", True)},
    spec.Branch: {"dropout": ("dropout", 0.1)},
}
OFFSET = 2  # rows before the first position, once meant for padding


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, KEYS, context=2048), fields.read(config, TABLE)
    config.fixed("layerdrop", 0.0, 0.0)
    config.fixed("layer_norm_elementwise_affine", True, True)
    config.inert("init_std", "activation_dropout", "classifier_dropout")
    before = config.get("do_layer_norm_before", True)
    last = before and not config.get("_remove_final_layer_norm", False)
    inner = config.size("word_embed_proj_dim", size.dim)
    attention, mlp = replace(size.attention, **said[spec.Attention]), size.mlp(**said[spec.MLP])
    norm = spec.Norm(kind="layer", eps=1e-5, bias=True)
    block = classic.block(attention, mlp, norm, "pre" if before else "post", **said[spec.Branch])
    narrow = None if inner == size.dim else inner
    positions = spec.Learned(count=(size.context or 2048) + OFFSET, offset=OFFSET)
    made = size.model(block, norm if last else None, replace(size.embed(), positions=positions, inner=narrow))
    return replace(made, stack=replace(made.stack, out=narrow))


def from_spec(model: spec.Model) -> dict[str, Any]:
    before = classic.way_of(model) == "pre"
    own = {
        "word_embed_proj_dim": model.stack.width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and model.stack.final_norm is None,
    }
    return classic.write_sizes(model, KEYS) | fields.write(model, TABLE) | own


L = "model.decoder.layers.{i}."
BODY = (
    Name("model.decoder.embed_tokens", "embed.tokens"),
    Name("model.decoder.project_in", "embed.widen"),
    Name("model.decoder.embed_positions", "embed.positions"),
    Name("model.decoder.final_layer_norm", "stack.final_norm"),
    Name("model.decoder.project_out", "stack.out"),
    *block_names(f"{L}self_attn.", q="q_proj", k="k_proj", v="v_proj", out="out_proj"),
    *block_names(L, norm1="self_attn_layer_norm", norm2="final_layer_norm", up="fc1", down="fc2"),
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
