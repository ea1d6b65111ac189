"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before, one matrix for q, k and v stored [in,out]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, classes_of_last, layers_of, none
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec

TABLE = classic.gpt_table(("activation_function", "gelu_new"), 0.1)


def to_spec(config: Config) -> spec.Model:
    size = classic.read_sizes(config, classic.GPT, context=1024)
    config.fixed("add_cross_attention", False, False)
    config.inert("reorder_and_upcast_attn", *classic.SUMMARY)
    said, usual = fields.read(config, TABLE), size.head_dim**-0.5
    attention = replace(size.attention, bias=True, out_bias=True, **said[spec.Attention])
    scale = usual if config.get("scale_attn_weights", True) else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    scales = [scale / (number + 1) if by_layer else scale for number in range(size.layers)]
    layers = [replace(attention, scale=None if own == usual else own) for own in scales]
    mlp, norm = size.mlp(**said[spec.MLP]), spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    blocks = tuple(classic.block(layer, mlp, norm, **said[spec.Branch]) for layer in layers)
    return size.model(blocks, norm, size.embed(**said[spec.Embed], learned=True))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions: list[spec.Attention] = layers_of(model.stack, spec.Attention)
    if not isinstance(model.embed.positions, spec.Learned):
        raise CannotSay("it needs learned positions")
    own = {
        "scale_attn_weights": attentions[0].scale in (None, attentions[0].head_dim ** -0.5),
        "scale_attn_by_inverse_layer_idx": len({layer.scale for layer in attentions}) > 1,
    }
    return classic.write_sizes(model, classic.GPT) | fields.write(model, TABLE) | own


H = "transformer.h.{i}."
NAMES = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.wpe", "embed.positions"),
    Name("transformer.ln_f", "stack.final_norm"),
    Name("lm_head", "heads.language"),
    Name("score", "heads.classes.linear"),
    *block_names(H, norm1="ln_1", norm2="ln_2"),
    *fused(f"{H}attn.c_attn", classic.QKV, (1, 1, 1), transpose=True),
    *block_names(H, transpose=True, out="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
)
FAMILY = Family(
    model_type="gpt2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={
        "GPT2LMHeadModel": classic.tied_language,
        "GPT2Model": none,
        "GPT2ForSequenceClassification": classes_of_last,
    },
    prefix="transformer.",
    ignore=(r".*attn\.bias", r".*attn\.masked_bias"),
    sizes=classic.GPT,
)
